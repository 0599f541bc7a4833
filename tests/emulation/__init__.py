"""CUDA kernels on a CPU: see README.md."""
