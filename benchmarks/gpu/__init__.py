"""Check and measure everything on one GPU, in steps of minutes: the GPU suite."""
