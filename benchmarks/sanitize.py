"""The CUDA kernels on the smallest cases, forward and backward, to be run under compute-sanitizer: `make gpu-sanitize`.

Exits with 1 where a kernel refuses a call or where its result is not accurate; the tool adds its own findings.
"""

from __future__ import annotations

import sys

import torch

from benchmarks import gate
from benchmarks.peers import implementations
from benchmarks.workloads import OPS
from dino_kernels.testing import CASES, DTYPES, Result, assert_result_accurate, sample_inputs

# Queries of every kind, masks, boxes, borders, odd sizes; each a few thousand samples, which a sanitizer bears.
NAMES = ("encoder_masked", "decoder_few_queries", "odd_points", "one_pixel_levels", "channels_36", "hostile_boxes")


def main(backend: str, device: str) -> int:
    kernel = implementations()[backend]
    # Filled, memory that a kernel reads before anybody wrote it would pass for written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    runs = 0
    for op in OPS:
        for case in (case for case in CASES if case.name in NAMES):
            for name, dtype in DTYPES.items():
                inputs, on_cpu = (sample_inputs(op, case, dtype, where) for where in (device, "cpu"))
                reason = kernel.unsupported(op, inputs)
                if reason is not None:
                    print(f"{op} {case.id} {name}: {reason}")
                    return 1
                for deterministic in (False, True):
                    torch.use_deterministic_algorithms(deterministic)
                    result = gate.forward_backward(kernel, op, inputs)
                    torch.use_deterministic_algorithms(False)
                    # Compared on the CPU: the sanitizer would watch PyTorch's kernels too, at length.
                    grads = {key: grad.cpu() for key, grad in result.grads.items()}
                    label = f"{backend} in {name}{', deterministic' if deterministic else ''}"
                    assert_result_accurate(op, on_cpu, Result(result.output.cpu(), grads), label)
                    runs += 1
    print(f"{runs} calls of {backend}, forward and backward")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ("cuda", "cuda"))))
