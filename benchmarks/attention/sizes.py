"""Choose the kernels of another size of GPU for CUDA calls."""

from __future__ import annotations

from dino_kernels.ops._core import libraries

# As many multiprocessors as make any call large, or any test's call small.
LARGE, SMALL = 1, 1_000_000
# Makes "cuda" calls use the kernels of a GPU with so many multiprocessors while it is entered.
multiprocessors = libraries.assume_multiprocessors
