"""Existing code on these kernels, with one line changed; nothing here runs unless it is imported and called.

- `original`: what Deformable-DETR, DINO, Mask2Former and GroundingDINO import as compiled op;
- `transformers`: the deformable attention of Hugging Face models, replaced in one model;
- `mmcv`: the names that mmcv.ops offers.
"""
