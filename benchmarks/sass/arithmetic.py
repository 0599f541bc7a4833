"""Compute integer instructions. `BUILDERS[base](instruction)` returns `run(warp, lanes)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.sass.instructions import (
    Instruction,
    UnknownInstruction,
    Value,
    addend,
    integer,
    integer64,
    is_predicate,
    predicate,
    sink,
    sink64,
)

Run = Callable[[Any, np.ndarray], None]
BUILDERS: dict[str, Callable[[Instruction], Run]] = {}
U32, U64, S32, S64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
LOW = U64(0xFFFFFFFF)


def operation(*names: str) -> Callable[[Callable[[Instruction], Run]], Callable[[Instruction], Run]]:
    def register(builder: Callable[[Instruction], Run]) -> Callable[[Instruction], Run]:
        for name in names:
            BUILDERS[name] = builder
        return builder

    return register


def carries(ins: Instruction, first: int = 1) -> tuple[list[str], list[str]]:
    """Split the operands from `first` on into the predicates that come first, and the rest."""
    end = first
    while end < len(ins.operands) and is_predicate(ins.operands[end]):
        end += 1
    return ins.operands[first:end], ins.operands[end:]


def simple(ins: Instruction, compute: Callable[..., Value], count: int) -> Run:
    to = sink(ins.operands[0], ins)
    sources = [integer(text, ins) for text in ins.operands[1 : 1 + count]]
    return lambda w, m: to(w, m, compute(*(source(w) for source in sources)))


@operation("MOV", "UMOV")
def move(ins: Instruction) -> Run:
    return simple(ins, lambda a: a, 1)


@operation("R2UR")
def first_lane(ins: Instruction) -> Run:
    to, a = sink(ins.operands[0], ins), integer(ins.operands[-1], ins)

    def run(w: Any, m: np.ndarray) -> None:
        if m.any():
            value = a(w)
            to(w, m, value[int(m.argmax())] if np.ndim(value) else value)

    return run


@operation("CS2R")
def clear(ins: Instruction) -> Run:
    if ins.operands[1] != "SRZ":
        raise UnknownInstruction(str(ins))
    to = sink(ins.operands[0], ins) if "32" in ins.modifiers else sink64(ins.operands[0], ins)
    return lambda w, m: to(w, m, np.zeros(32, U64))


@operation("IADD3", "UIADD3")
def add_three(ins: Instruction) -> Run:
    to = sink(ins.operands[0], ins)
    outs, rest = carries(ins)
    a, b, c = (addend(text, ins) for text in rest[:3])
    ins_carry = [predicate(text, ins) for text in rest[3:]] if "X" in ins.modifiers else []
    first = sink(outs[0], ins) if outs else None
    second = sink(outs[1], ins) if len(outs) > 1 else None

    def run(w: Any, m: np.ndarray) -> None:
        total = a(w) + b(w) + c(w)
        for carry in ins_carry:
            total = total + carry(w).astype(U64)
        to(w, m, total & LOW)
        if first:
            first(w, m, (total >> U64(32)) >= U64(1))
        if second:
            second(w, m, (total >> U64(32)) >= U64(2))

    return run


@operation("VIADD")
def add_two(ins: Instruction) -> Run:
    return simple(ins, lambda a, b: a + b, 2)


@operation("IMAD", "UIMAD")
def multiply_add(ins: Instruction) -> Run:
    outs, rest = carries(ins)
    if "WIDE" in ins.modifiers or "HI" in ins.modifiers:
        return wide_multiply_add(ins, outs, rest)
    to = sink(ins.operands[0], ins)
    a, b, c = (integer(text, ins) for text in rest[:3])
    if "X" in ins.modifiers:
        carry = predicate(rest[3], ins)
        return lambda w, m: to(w, m, a(w) * b(w) + c(w) + carry(w).astype(U32))
    if rest[0] == "RZ" or rest[1] == "RZ":
        return lambda w, m: to(w, m, c(w))
    return lambda w, m: to(w, m, a(w) * b(w) + c(w))


def wide_multiply_add(ins: Instruction, outs: list[str], rest: list[str]) -> Run:
    signed = "U32" not in ins.modifiers
    a, b, c = integer(rest[0], ins), integer(rest[1], ins), integer64(rest[2], ins)
    if rest[2].startswith("0x") or rest[2].startswith("-0x"):
        raise UnknownInstruction(str(ins))
    carry_out = sink(outs[0], ins) if outs else None
    carry_in = predicate(rest[3], ins) if "X" in ins.modifiers else None
    high = "HI" in ins.modifiers
    to = sink(ins.operands[0], ins) if high else sink64(ins.operands[0], ins)

    def run(w: Any, m: np.ndarray) -> None:
        x, y = a(w), b(w)
        if signed:
            product = (x.view(S32).astype(S64) * y.view(S32).astype(S64)).astype(U64)
        else:
            product = x.astype(U64) * y.astype(U64)
        addition = c(w)
        total = product + addition
        over = total < addition
        if carry_in is not None:
            before = total
            total = total + carry_in(w).astype(U64)
            over = over | (total < before)
        to(w, m, total >> U64(32) if high else total)
        if carry_out:
            carry_out(w, m, over)

    return run


@operation("VIMNMX", "IMNMX", "VIADDMNMX")
def limit(ins: Instruction) -> Run:
    """Take the minimum or maximum of two numbers, of which the first may be a sum."""
    terms = 2 if ins.base == "VIADDMNMX" else 1
    to, smaller = sink(ins.operands[0], ins), predicate(ins.operands[2 + terms], ins)
    *added, b = (integer(text, ins) for text in ins.operands[1 : 2 + terms])
    view = U32 if "U32" in ins.modifiers else S32

    def run(w: Any, m: np.ndarray) -> None:
        first = added[0](w) if len(added) == 1 else added[0](w) + added[1](w)
        x, y = first.view(view), b(w).view(view)
        to(w, m, np.where(smaller(w), np.minimum(x, y), np.maximum(x, y)).view(U32))

    return run


@operation("IABS")
def absolute(ins: Instruction) -> Run:
    return simple(ins, lambda a: np.abs(a.view(S32).astype(S64)), 1)


@operation("SEL", "USEL")
def select(ins: Instruction) -> Run:
    to, chosen = sink(ins.operands[0], ins), predicate(ins.operands[3], ins)
    a, b = (integer(text, ins) for text in ins.operands[1:3])
    return lambda w, m: to(w, m, np.where(chosen(w), a(w), b(w)))


@operation("SHF", "USHF")
def funnel_shift(ins: Instruction) -> Run:
    to = sink(ins.operands[0], ins)
    a, s, c = (integer(text, ins) for text in ins.operands[1:4])
    left, high, wrap = "L" in ins.modifiers, "HI" in ins.modifiers, "W" in ins.modifiers
    wide, signed = bool(ins.modifiers & {"U64", "S64"}), bool(ins.modifiers & {"S32", "S64"})
    limit_ = 64 if wide else 32

    def run(w: Any, m: np.ndarray) -> None:
        shift = s(w)
        shift = (shift & U32(limit_ - 1)) if wrap else np.minimum(shift, U32(limit_))
        # A shift by 64 is two by 32: numpy leaves it undefined.
        half, rest = (shift >> U32(1)).astype(U64), (shift - (shift >> U32(1))).astype(U64)
        low, top = a(w).astype(U64), c(w).astype(U64)
        pair = low | (top << U64(32))
        if left:
            value = ((pair << half) << rest) >> U64(32) if high else (low << half) << rest
        elif high and not wide:
            shifted = top.astype(U32).view(S32).astype(S64) if signed else top.astype(S64)
            value = (shifted >> half.astype(S64)) >> rest.astype(S64)
        elif signed:
            value = (pair.view(S64) >> half.astype(S64)) >> rest.astype(S64)
            value = value >> S64(32) if high else value
        else:
            value = (pair >> half) >> rest
            value = value >> U64(32) if high else value
        to(w, m, np.asarray(value).astype(U64) & LOW)

    return run


@operation("LEA", "ULEA")
def shifted_add(ins: Instruction) -> Run:
    to = sink(ins.operands[0], ins)
    outs, rest = carries(ins)
    carry_out = sink(outs[0], ins) if outs else None
    high, extended, sign = ("HI" in ins.modifiers), ("X" in ins.modifiers), ("SX32" in ins.modifiers)
    a, b = integer(rest[0], ins), addend(rest[1], ins)
    upper = integer(rest[2], ins) if high and not sign else None
    shift_at = 3 if upper else 2
    shift = int(rest[shift_at], 0)
    carry_in = predicate(rest[shift_at + 1], ins) if extended else None

    def run(w: Any, m: np.ndarray) -> None:
        low = a(w)
        if high:
            top = upper(w) if upper else (low.view(S32) >> S32(31)).view(U32)
            pair = low.astype(U64) | (top.astype(U64) << U64(32))
            shifted = (pair >> U64(32 - shift)) & LOW
        else:
            shifted = (low.astype(U64) << U64(shift)) & LOW
        total = shifted + b(w)
        if carry_in is not None:
            total = total + carry_in(w).astype(U64)
        to(w, m, total & LOW)
        if carry_out:
            carry_out(w, m, (total >> U64(32)) != U64(0))

    return run


@operation("IDP")
def dot_product(ins: Instruction) -> Run:
    """Add two halves times the two lower bytes to a third number: 2A.LO.U16.U8."""
    if ins.modifiers != {"2A", "LO", "U16", "U8"}:
        raise UnknownInstruction(str(ins))
    to = sink(ins.operands[0], ins)
    a, b, c = (integer(text, ins) for text in ins.operands[1:4])
    half, byte = U32(0xFFFF), U32(0xFF)
    return lambda w, m: to(w, m, c(w) + (a(w) & half) * (b(w) & byte) + (a(w) >> U32(16)) * (b(w) >> U32(8) & byte))
