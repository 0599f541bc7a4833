"""Time the steps of dino_kernels/tutorial, in turns."""
