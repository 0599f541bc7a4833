"""Execute kernels that Triton compiled ahead of time: `triton.compile(...).asm["cubin"]` with a launch's arguments."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.sass.disassembly import Kernel, kernels_of_cubin
from benchmarks.sass.execution import Block, Program
from benchmarks.sass.launch import GLOBAL, SHARED_LIMIT, constant_bank
from benchmarks.sass.memory import Ledger, Memory

HIDDEN = 2  # pointers to scratch memory after a kernel's own arguments


def _flat(arguments: Sequence[Any]) -> list[Tensor | int]:
    """Return what a launch passes: without None and integers equal to 1, which the compiler knows."""
    flat: list[Tensor | int] = []
    for argument in arguments:
        if isinstance(argument, (tuple, list)):
            flat += _flat(argument)
        elif argument is not None and not (isinstance(argument, int) and argument == 1):
            flat.append(argument)
    return flat


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()


def run_programs(
    cubin: bytes, arguments: Sequence[Any], num_warps: int, grid: int, programs: Sequence[int], arch: int = 90
) -> tuple[Kernel, list[Ledger]]:
    """Run some of a grid's programs. Tensors among the arguments (on the CPU, dense) get the results.

    Args:
        arguments: of the launch, in order, without the constexpr ones.
        programs: their numbers, `tl.program_id(0)`; other axes have one program.

    Returns: the kernel, and a ledger for each program.

    Raises:
        ValueError: the arguments and the kernel's parameters differ in size.
    """
    (kernel,) = kernels_of_cubin(cubin, arch)
    flat = _flat(arguments)
    tensors = [argument for argument in flat if isinstance(argument, Tensor)]
    memory = Memory("global", sum(t.numel() * t.element_size() + 512 for t in tensors) + 512, GLOBAL)
    packed, places = b"", []
    for argument in flat:
        if isinstance(argument, Tensor):
            at = memory.put(_bytes(argument))
            places.append((argument, at))
            packed += bytes(-len(packed) % 8) + at.to_bytes(8, "little")
        elif -(1 << 31) <= argument < 1 << 31:
            packed += struct.pack("<i", argument)
        else:
            packed += bytes(-len(packed) % 8) + struct.pack("<q", argument)
    packed += bytes(-len(packed) % 8 + 8 * HIDDEN)
    threads = 32 * num_warps
    bank = constant_bank(kernel, packed, grid, threads)
    program = Program(kernel.instructions)
    stack = (kernel.stack + 15) // 16 * 16
    ledgers = [Block(program, bank, memory, index, threads, SHARED_LIMIT, stack).run() for index in programs]
    for tensor, at in places:
        raw = memory.bytes[at - GLOBAL : at - GLOBAL + tensor.numel() * tensor.element_size()].copy()
        tensor.detach().copy_(torch.from_numpy(raw).view(tensor.dtype).view(tensor.shape))
    return kernel, ledgers
