"""Ideas of DINO's successors, each behind a switch of `ModelConfig` that is off by default.

"Successors" in `dino/README.md` lists them, with the papers they are from.
"""
