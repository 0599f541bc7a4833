"""What tensor core instructions compute, and the loads of their operands."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.sass.arithmetic import Run, operation
from benchmarks.sass.floating import from_bfloat16, from_half
from benchmarks.sass.instructions import Instruction, UnknownInstruction, integer, register, sink

U32 = np.uint32
GROUP, IN_GROUP = np.arange(32) // 4, np.arange(32) % 4


def registers(text: str, count: int, ins: Instruction) -> list[str]:
    found = register(text)
    if found is None or found[0] != "R":
        raise UnknownInstruction(str(ins))
    return ["RZ"] * count if found[1] < 0 else [f"R{found[1] + i}" for i in range(count)]


@operation("HMMA")
def product(ins: Instruction) -> Run:
    """16816: D = A B + C; the layouts are those of PTX's mma.m16n8k16."""
    if "16816" not in ins.modifiers or "F32" not in ins.modifiers:
        raise UnknownInstruction(str(ins))
    widen = from_bfloat16 if "BF16" in ins.modifiers else from_half
    outs = [sink(name, ins) for name in registers(ins.operands[0], 4, ins)]
    a, b, c = (
        [integer(name, ins) for name in registers(text, count, ins)]
        for text, count in zip(ins.operands[1:4], (4, 2, 4), strict=True)
    )

    def halves(word: Any) -> np.ndarray:
        word = np.broadcast_to(word, 32).astype(U32)
        pair = np.stack([word & U32(0xFFFF), word >> U32(16)], -1).astype(np.uint16)
        return widen(pair).astype(np.float64)

    def run(w: Any, m: np.ndarray) -> None:
        left, right, sums = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
        for i, source in enumerate(a):
            left[GROUP[:, None] + 8 * (i % 2), 2 * IN_GROUP[:, None] + np.arange(2) + 8 * (i // 2)] = halves(source(w))
        for i, source in enumerate(b):
            right[2 * IN_GROUP[:, None] + np.arange(2) + 8 * i, GROUP[:, None]] = halves(source(w))
        for i, source in enumerate(c):
            sums[GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2] = np.broadcast_to(source(w), 32).astype(U32).view(np.float32)
        with np.errstate(all="ignore"):
            result = ((left[:, :, None] * right[None]).sum(1) + sums).astype(np.float32).view(U32)
        for i, to in enumerate(outs):
            to(w, m, result[GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2])

    return run


@operation("IDP")
def dot_product(ins: Instruction) -> Run:
    """2A.LO.U16.U8: two halves times the two lower bytes."""
    if ins.modifiers != {"2A", "LO", "U16", "U8"}:
        raise UnknownInstruction(str(ins))
    to = sink(ins.operands[0], ins)
    a, b, c = (integer(text, ins) for text in ins.operands[1:4])
    low, byte, half = U32(0xFFFF), U32(0xFF), U32(16)
    return lambda w, m: to(
        w, m, c(w) + (a(w) & low) * (b(w) & byte) + (a(w) >> half) * ((b(w) >> U32(8)) & byte)
    )
