"""Check what the GPU suite needs: `python -m benchmarks.gpu.ready`.

Exits with 0 if there are a GPU and libraries that run on it, with 3 if the libraries have to be built first, and with 1
and one line if there is no GPU.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.measure.machine import NO_GPU
from dino_kernels.ops._core import libraries

BUILD = 3


def main() -> int:
    if not torch.cuda.is_available():
        print(f"{NO_GPU}: the GPU suite measures nothing without one", file=sys.stderr)
        return 1
    reason = libraries.CPU_MISSING or libraries.CUDA_MISSING or libraries.unsupported_gpu(torch.cuda.current_device())
    if reason is None:
        print("the compiled libraries run on this GPU")
        return 0
    print(f"the libraries must be built: {reason}")
    return BUILD


if __name__ == "__main__":
    sys.exit(main())
