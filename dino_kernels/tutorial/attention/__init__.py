"""Deformable attention in eight steps; `run.STEPS` lists them."""
