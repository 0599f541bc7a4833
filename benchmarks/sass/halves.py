"""Compute instructions on 16-bit numbers: their formats, pairs in a register, tensor cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.sass.arithmetic import F32, F64, U32, Run, operation
from benchmarks.sass.instructions import (
    NUMBER,
    Instruction,
    UnknownInstruction,
    Value,
    float32,
    integer,
    register,
    sign_of,
    sink,
)


def to_bfloat16(x: Value) -> Value:
    bits = np.asarray(x, F32).view(U32)
    nearest = (bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), nearest)


def to_half(x: Value) -> Value:
    bits = np.asarray(x, F32).astype(np.float16).view(np.uint16).astype(U32)
    return np.where(np.isnan(x), U32(0x7FFF), bits)


def from_bfloat16(bits: Value) -> Value:
    return (np.asarray(bits).astype(U32) << U32(16)).view(F32)


def from_half(bits: Value) -> Value:
    return np.asarray(bits).astype(np.uint16).view(np.float16).astype(F32)


@operation("F2FP")
def pack(ins: Instruction) -> Run:
    if "PACK_AB" not in ins.modifiers or ins.modifiers - {"PACK_AB", "BF16", "F16", "F32", "RELU"}:
        raise UnknownInstruction(str(ins))
    to, narrow = sink(ins.operands[0], ins), to_bfloat16 if "BF16" in ins.modifiers else to_half
    a, b = (float32(text, ins) for text in ins.operands[1:3])
    relu = "RELU" in ins.modifiers

    def run(w: Any, m: np.ndarray) -> None:
        high, low = a(w), b(w)
        if relu:
            high, low = np.fmax(high, F32(0)), np.fmax(low, F32(0))
        to(w, m, (narrow(high) << U32(16)) | narrow(low))

    return run


Halves = Callable[[Any], tuple[Value, Value]]  # low, high as float32


def half_pair(text: str, ins: Instruction) -> Halves:
    negative, _, absolute, rest = sign_of(text)
    rest, _, part = rest.partition(".")
    bits = integer(rest.rstrip("|"), ins)
    widen = from_bfloat16 if any("BF16" in name for name in ins.modifiers) else from_half
    sign = F32(-1 if negative else 1)

    def load(w: Any) -> tuple[Value, Value]:
        both = bits(w)
        low, high = widen(both & U32(0xFFFF)), widen(both >> U32(16))
        low, high = {"": (low, high), "H0_H0": (low, low), "H1_H1": (high, high)}[part]
        if absolute:
            low, high = np.abs(low), np.abs(high)
        return low * sign, high * sign

    return load


@operation("HADD2", "HMUL2", "HFMA2")
def pairs(ins: Instruction) -> Run:
    sources: list[Halves] = []
    texts, i = ins.operands[1:], 0
    while i < len(texts):
        if NUMBER.fullmatch(texts[i]):  # of an immediate pair the upper half comes first
            high, low = F32(float(texts[i])), F32(float(texts[i + 1]))
            sources.append(lambda w, low=low, high=high: (low, high))
            i += 2
        else:
            sources.append(half_pair(texts[i], ins))
            i += 1
    to, wide = sink(ins.operands[0], ins), "F32" in ins.modifiers
    compute = {"HADD2": lambda a, b: a + b, "HMUL2": lambda a, b: a * b, "HFMA2": lambda a, b, c: a * b + c}[ins.base]
    narrow = to_bfloat16 if any("BF16" in name for name in ins.modifiers) else to_half

    def run(w: Any, m: np.ndarray) -> None:
        given = [source(w) for source in sources]
        low, high = (compute(*(np.asarray(pair[k]).astype(F64) for pair in given)) for k in (0, 1))
        if wide:
            to(w, m, np.asarray(low).astype(F32).view(U32))
        else:
            to(w, m, (narrow(np.asarray(high).astype(F32)) << U32(16)) | narrow(np.asarray(low).astype(F32)))

    return run


@operation("HMMA")
def tensor_core(ins: Instruction) -> Run:
    """Multiply m16n8k16 and m16n8k8 with float32 sums, on the fragments of PTX's mma.sync."""
    depth = 16 if "16816" in ins.modifiers else 8 if "1688" in ins.modifiers else 0
    if not depth or "F32" not in ins.modifiers or ins.modifiers - {"16816", "1688", "F32", "BF16", "F16"}:
        raise UnknownInstruction(str(ins))
    widen = from_bfloat16 if "BF16" in ins.modifiers else from_half
    places = [register(text) for text in ins.operands[:4]]
    if any(place is None or place[0] != "R" for place in places):
        raise UnknownInstruction(str(ins))
    d, a, b, c = (place[1] for place in places if place)
    lane = np.arange(32)
    group, member = lane >> 2, (lane & 3) * 2

    def fragment(w: Any, first: int, at: list[tuple[np.ndarray, np.ndarray]], rows: int, columns: int) -> np.ndarray:
        """Load a matrix; `at` places the lower half of each register, and the upper half is in the next column."""
        matrix = np.zeros((rows, columns), F64)
        for i, (row, column) in enumerate(at):
            if first >= 0:
                matrix[row, column] = widen(w.R[first + i] & U32(0xFFFF))
                matrix[row, column + 1] = widen(w.R[first + i] >> U32(16))
        return matrix

    in_a = [(group, member), (group + 8, member)]
    in_b = [(group, member)]  # transposed: columns of B in rows
    if depth == 16:
        in_a += [(group, member + 8), (group + 8, member + 8)]
        in_b += [(group, member + 8)]
    in_c = [(group, member), (group, member + 1), (group + 8, member), (group + 8, member + 1)]

    def run(w: Any, m: np.ndarray) -> None:
        if not m.all():
            raise UnknownInstruction(f"{ins} by a part of a warp")
        product = fragment(w, a, in_a, 16, depth) @ fragment(w, b, in_b, 8, depth).T
        for i, (row, column) in enumerate(in_c):
            before = w.R[c + i].view(F32).astype(F64) if c >= 0 else 0.0
            if d >= 0:
                w.R[d + i] = (product[row, column] + before).astype(F32).view(U32)

    return run
