"""Run existing code on these kernels by changing one line. Nothing happens unless a module is imported and called.

- `original`: the compiled op that Deformable-DETR, DINO, Mask2Former and GroundingDINO import;
- `transformers`: the deformable attention of Hugging Face models, replaced in one model;
- `mmcv`: the functions of mmcv.ops.
"""
