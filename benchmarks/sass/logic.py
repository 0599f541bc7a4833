"""Compute logic, comparisons, predicates and instructions on bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.sass.arithmetic import S32, U32, U64, Run, operation, simple
from benchmarks.sass.instructions import (
    NUMBER,
    Instruction,
    UnknownInstruction,
    Value,
    integer,
    is_predicate,
    predicate,
    sink,
)

USUAL: dict[int, Callable[[Value, Value, Value], Value]] = {
    0xC0: lambda a, b, c: a & b,
    0xFC: lambda a, b, c: a | b,
    0x3C: lambda a, b, c: a ^ b,
    0x33: lambda a, b, c: ~b,
    0x0F: lambda a, b, c: ~a,
    0xF8: lambda a, b, c: a | (b & c),
    0x96: lambda a, b, c: a ^ b ^ c,
    0xFE: lambda a, b, c: a | b | c,
    0x80: lambda a, b, c: a & b & c,
}


def by_table(table: int) -> Callable[[Value, Value, Value], Value]:
    """Return any logic function of three operands: bit 4a + 2b + c of the table."""
    if table in USUAL:
        return USUAL[table]

    def function(a: Value, b: Value, c: Value) -> Value:
        result = (a ^ a) | (b ^ b) | (c ^ c)
        for index in range(8):
            if table >> index & 1:
                term = (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
                result = result | term
        return result

    return function


@operation("LOP3", "ULOP3")
def logic(ins: Instruction) -> Run:
    if "LUT" not in ins.modifiers or "PAND" in ins.modifiers:
        raise UnknownInstruction(str(ins))
    operands = ins.operands
    pred = sink(operands[0], ins) if is_predicate(operands[0]) else None
    operands = operands[1:] if pred else operands
    to = sink(operands[0], ins)
    a, b, c = (integer(text, ins) for text in operands[1:4])
    function = by_table(int(operands[4], 0))
    joined = predicate(operands[5], ins) if len(operands) > 5 else None

    def run(w: Any, m: np.ndarray) -> None:
        value = function(a(w), b(w), c(w))
        joined_value = joined(w) if joined else np.bool_(False)
        to(w, m, value)
        if pred:
            pred(w, m, (value != 0) | joined_value)

    return run


@operation("PLOP3", "UPLOP3")
def predicate_logic(ins: Instruction) -> Run:
    first, second = sink(ins.operands[0], ins), sink(ins.operands[1], ins)
    a, b, c = (predicate(text, ins) for text in ins.operands[2:5])
    one_of, two_of = (by_table(int(text, 0)) for text in ins.operands[5:7])

    def run(w: Any, m: np.ndarray) -> None:
        x, y, z = a(w), b(w), c(w)
        one, two = one_of(x, y, z), two_of(x, y, z)
        first(w, m, one)
        second(w, m, two)

    return run


COMPARISONS = {
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}


def joined_with(ins: Instruction) -> Callable[[Value, Value], Value]:
    for name, function in (("AND", np.logical_and), ("OR", np.logical_or), ("XOR", np.logical_xor)):
        if name in ins.modifiers:
            return function
    raise UnknownInstruction(str(ins))


@operation("ISETP", "UISETP")
def compare(ins: Instruction) -> Run:
    first, second = sink(ins.operands[0], ins), sink(ins.operands[1], ins)
    a, b = (integer(text, ins) for text in ins.operands[2:4])
    other = predicate(ins.operands[4], ins)
    low = predicate(ins.operands[5], ins) if "EX" in ins.modifiers else None
    name = next(name for name in COMPARISONS if name in ins.modifiers)
    view, join, function = (U32 if "U32" in ins.modifiers else S32), joined_with(ins), COMPARISONS[name]

    def run(w: Any, m: np.ndarray) -> None:
        x, y = a(w).view(view), b(w).view(view)
        if low is None:
            truth = function(x, y)
        elif name == "EQ":
            truth = (x == y) & low(w)
        elif name == "NE":
            truth = (x != y) | low(w)
        else:  # the lower halves decide where the upper ones are equal
            truth = (x < y if name in ("LT", "LE") else x > y) | ((x == y) & low(w))
        with_ = other(w)
        one, two = join(truth, with_), join(~truth, with_)
        first(w, m, one)
        second(w, m, two)

    return run


@operation("PRMT", "UPRMT")
def permute(ins: Instruction) -> Run:
    if ins.modifiers:
        raise UnknownInstruction(str(ins))
    to = sink(ins.operands[0], ins)
    a, s, b = (integer(text, ins) for text in ins.operands[1:4])
    if NUMBER.fullmatch(ins.operands[2]) and not int(ins.operands[2], 0) & 0x8888:
        places = [int(ins.operands[2], 0) >> 4 * i & 7 for i in range(4)]

        def run_bytes(w: Any, m: np.ndarray) -> None:
            pair = np.empty((32, 2), U32)
            pair[:, 0], pair[:, 1] = a(w), b(w)
            to(w, m, np.ascontiguousarray(pair.view(np.uint8)[:, places]).view(U32)[:, 0])

        if ins.base == "PRMT":
            return run_bytes

    def run(w: Any, m: np.ndarray) -> None:
        pair = a(w).astype(U64) | (b(w).astype(U64) << U64(32))
        selector, result = s(w), U32(0)
        for i in range(4):
            nibble = (selector >> U32(4 * i)) & U32(15)
            byte = ((pair >> ((nibble & U32(7)).astype(U64) * U64(8))) & U64(255)).astype(U32)
            byte = np.where(nibble & U32(8), np.where(byte & U32(128), U32(255), U32(0)), byte)
            result = result | (byte.astype(U32) << U32(8 * i))
        to(w, m, result)

    return run


@operation("FLO", "UFLO")
def highest_bit(ins: Instruction) -> Run:
    to, a = sink(ins.operands[0], ins), integer(ins.operands[1], ins)
    signed, shift_amount = "U32" not in ins.modifiers, "SH" in ins.modifiers

    def run(w: Any, m: np.ndarray) -> None:
        value = a(w)
        if signed:
            value = np.where(value >> U32(31), ~value, value)
        bit = np.floor(np.log2(np.maximum(value, U32(1)).astype(np.float64))).astype(U32)
        bit = U32(31) - bit if shift_amount else bit
        to(w, m, np.where(value == 0, U32(0xFFFFFFFF), bit))

    return run


@operation("POPC", "UPOPC")
def count_bits(ins: Instruction) -> Run:
    return simple(ins, lambda a: sum((a >> U32(i)) & U32(1) for i in range(32)), 1)


@operation("BREV", "UBREV")
def reverse_bits(ins: Instruction) -> Run:
    return simple(ins, lambda a: sum(((a >> U32(i)) & U32(1)) << U32(31 - i) for i in range(32)), 1)


@operation("SGXT", "USGXT")
def extend(ins: Instruction) -> Run:
    to, a, bits = sink(ins.operands[0], ins), integer(ins.operands[1], ins), int(ins.operands[2], 0)
    if not 0 < bits < 32 or "W" in ins.modifiers:
        raise UnknownInstruction(str(ins))
    up, view = U32(32 - bits), U32 if "U32" in ins.modifiers else S32

    def run(w: Any, m: np.ndarray) -> None:
        shifted = a(w) << up
        to(w, m, (shifted.view(view) >> view(32 - bits)).view(U32))

    return run


@operation("P2R", "UP2UR")
def predicates_to_register(ins: Instruction) -> Run:
    operands = [text for text in " ".join(ins.operands).replace("UPR", "").replace("PR", "").split() if text]
    if len(operands) != 3:
        raise UnknownInstruction(str(ins))
    to, a, mask = sink(operands[0], ins), integer(operands[1], ins), integer(operands[2], ins)
    uniform = ins.base == "UP2UR"

    def run(w: Any, m: np.ndarray) -> None:
        bits = sum((w.UP if uniform else w.P)[i].astype(U32) << U32(i) for i in range(7))
        to(w, m, (a(w) & ~mask(w)) | (bits & mask(w)))

    return run


@operation("R2P")
def register_to_predicates(ins: Instruction) -> Run:
    a, mask = integer(ins.operands[1], ins), int(ins.operands[2], 0)

    def run(w: Any, m: np.ndarray) -> None:
        value = a(w)
        for i in range(7):
            if mask >> i & 1:
                np.copyto(w.P[i], (value >> U32(i)) & U32(1) != 0, where=m)

    return run
