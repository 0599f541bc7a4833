"""Seed a process; save and restore its random generators."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_process(seed: int) -> None:
    """Seed all random generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def numerics(*, deterministic: bool, tf32: bool) -> Iterator[None]:
    """Set PyTorch's numerics for the length of the block; enter it before the first use of a GPU."""
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        (cudnn.deterministic, cudnn.allow_tf32),
    )
    if deterministic:
        # cuBLAS needs this for determinism, and reads it when it is initialised.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic = True
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.deterministic, cudnn.allow_tf32 = before[2]


def rng_state(device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the states of this process's generators: JSON values, and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = [name, keys.tolist(), *rest]  # pyright: ignore[reportAttributeAccessIssue]
    tensors = {"cpu_state": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda_state"] = torch.cuda.get_rng_state(device)
    return {"python": random.getstate(), "numpy": numpy_state}, tensors


def set_rng_state(values: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> None:
    """Restore what `rng_state` returned, also after JSON turned tuples into lists."""
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["cpu_state"])
    if device.type == "cuda" and "cuda_state" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_state"], device)
