"""Compute floating-point instructions and conversions: exact, then rounded once.

The approximations of MUFU are correctly rounded here, and a double rounding may happen in FFMA: the last bit of a
result may differ from a GPU's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks.sass.arithmetic import F32, F64, U32, U64, Run, operation
from benchmarks.sass.halves import to_bfloat16, to_half
from benchmarks.sass.instructions import (
    NUMBER,
    Instruction,
    Source,
    UnknownInstruction,
    Value,
    float32,
    float64,
    integer,
    integer64,
    predicate,
    sink,
    sink64,
)
from benchmarks.sass.logic import COMPARISONS, joined_with

TINY = F32(2.0**-126)


def flushed(value: Value) -> Value:
    return np.where(np.abs(value) < TINY, np.copysign(F32(0), value), value)


def rounded(exact: Value, ins: Instruction) -> Value:
    """Round a float64 to float32 in the instruction's rounding mode."""
    result = np.asarray(exact).astype(F32)
    if "RM" in ins.modifiers:
        result = np.where(result > exact, np.nextafter(result, F32(-np.inf)), result)
    elif "RP" in ins.modifiers:
        result = np.where(result < exact, np.nextafter(result, F32(np.inf)), result)
    elif "RZ" in ins.modifiers:
        result = np.where(np.abs(result) > np.abs(exact), np.nextafter(result, F32(0)), result)
    if "SAT" in ins.modifiers:
        result = np.where(np.isnan(result), F32(0), np.clip(result, F32(0), F32(1)))
    return flushed(result) if "FTZ" in ins.modifiers else result


def in_float32(ins: Instruction, compute: Callable[..., Value], count: int) -> Run:
    to = sink(ins.operands[0], ins)
    sources = [float32(text, ins) for text in ins.operands[1 : 1 + count]]
    ftz = "FTZ" in ins.modifiers

    def run(w: Any, m: np.ndarray) -> None:
        given = [source(w) for source in sources]
        if ftz:
            given = [flushed(value) for value in given]
        exact = compute(*(value.astype(F64) for value in given))
        to(w, m, rounded(exact, ins).astype(F32).view(U32))

    return run


SUM, PRODUCT, FUSED = (lambda a, b: a + b), (lambda a, b: a * b), (lambda a, b, c: a * b + c)


@operation("FADD", "FMUL")
def add_or_multiply(ins: Instruction) -> Run:
    compute = SUM if ins.base == "FADD" else PRODUCT
    if not ins.modifiers:
        to, a, b = sink(ins.operands[0], ins), float32(ins.operands[1], ins), float32(ins.operands[2], ins)
        return lambda w, m: to(w, m, compute(a(w), b(w)).view(U32))
    return in_float32(ins, compute, 2)


@operation("FFMA")
def fused(ins: Instruction) -> Run:
    if not ins.modifiers:
        to, (a, b, c) = sink(ins.operands[0], ins), (float32(text, ins) for text in ins.operands[1:4])

        def run(w: Any, m: np.ndarray) -> None:
            exact = np.add(np.multiply(a(w), b(w), dtype=F64), c(w), dtype=F64)
            to(w, m, exact.astype(F32).view(U32))

        return run
    return in_float32(ins, FUSED, 3)


@operation("FSEL")
def select(ins: Instruction) -> Run:
    to, chosen = sink(ins.operands[0], ins), predicate(ins.operands[3], ins)
    a, b = float32(ins.operands[1], ins), float32(ins.operands[2], ins)
    return lambda w, m: to(w, m, np.where(chosen(w), a(w), b(w)).astype(F32).view(U32))


@operation("FMNMX")
def limit(ins: Instruction) -> Run:
    to, smaller = sink(ins.operands[0], ins), predicate(ins.operands[3], ins)
    a, b = float32(ins.operands[1], ins), float32(ins.operands[2], ins)

    def run(w: Any, m: np.ndarray) -> None:
        x, y = a(w), b(w)
        to(w, m, np.where(smaller(w), np.fmin(x, y), np.fmax(x, y)).astype(F32).view(U32))

    return run


@operation("FSETP", "DSETP")
def compare(ins: Instruction) -> Run:
    first, second = sink(ins.operands[0], ins), sink(ins.operands[1], ins)
    make = float64 if ins.base == "DSETP" else float32
    a, b = (make(text, ins) for text in ins.operands[2:4])
    other, join = predicate(ins.operands[4], ins), joined_with(ins)
    names = [*COMPARISONS, *(f"{name}U" for name in COMPARISONS), "NAN", "NUM"]
    name = next(name for name in names if name in ins.modifiers)
    ftz = "FTZ" in ins.modifiers

    def run(w: Any, m: np.ndarray) -> None:
        x, y = a(w), b(w)
        if ftz:
            x, y = flushed(x), flushed(y)
        unordered = np.isnan(x) | np.isnan(y)
        if name == "NAN":
            truth = unordered
        elif name == "NUM":
            truth = ~unordered
        elif name in COMPARISONS:
            truth = COMPARISONS[name](x, y) & ~unordered
        else:
            truth = COMPARISONS[name[:-1]](x, y) | unordered
        with_ = other(w)
        one, two = join(truth, with_), join(~truth, with_)
        first(w, m, one)
        second(w, m, two)

    return run


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "RCP": lambda x: 1.0 / x,
    "RSQ": lambda x: 1.0 / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "SIN": np.sin,
    "COS": np.cos,
    "TANH": np.tanh,
}


@operation("MUFU")
def special(ins: Instruction) -> Run:
    to = sink(ins.operands[0], ins)
    if "RCP64H" in ins.modifiers:
        high = integer(ins.operands[1], ins)

        def run_high(w: Any, m: np.ndarray) -> None:
            number = (high(w).astype(U64) << U64(32)).view(F64)
            to(w, m, (1.0 / number).view(U64) >> U64(32))

        return run_high
    name = next((name for name in FUNCTIONS if name in ins.modifiers), None)
    if name is None:
        raise UnknownInstruction(str(ins))
    a, function = float32(ins.operands[1], ins), FUNCTIONS[name]
    return lambda w, m: to(w, m, np.asarray(function(flushed(a(w)).astype(F64))).astype(F32).view(U32))


@operation("FCHK")
def division_is_hard(ins: Instruction) -> Run:
    """Find whether a quotient needs the slow path, which is right for all numbers: when in doubt, it does."""
    to = sink(ins.operands[0], ins)
    a, b = (integer(text, ins) if not NUMBER.fullmatch(text) else None for text in ins.operands[1:3])
    a_number, b_number = (float32(text, ins) for text in ins.operands[1:3])

    def exponent(source: Source | None, number: Source, w: Any) -> Value:
        bits = source(w) if source else number(w).view(U32)
        return ((bits >> U32(23)) & U32(255)).astype(np.int32)

    def run(w: Any, m: np.ndarray) -> None:
        above, below = exponent(a, a_number, w), exponent(b, b_number, w)
        zero = np.abs(a_number(w)) == 0
        hard = (below == 0) | (below >= 253) | (above == 255) | (above - below >= 126) | (above - below <= -125)
        hard = hard | (above < 25)
        to(w, m, np.where(zero & (below > 0) & (below < 253), False, hard))

    return run


@operation("I2F", "I2FP")
def from_integer(ins: Instruction) -> Run:
    wide, signed = bool(ins.modifiers & {"S64", "U64"}), not ins.modifiers & {"U32", "U64", "U8", "U16"}
    if ins.modifiers & {"U8", "U16", "S8", "S16", "F16"}:
        raise UnknownInstruction(str(ins))
    a = integer64(ins.operands[1], ins) if wide else integer(ins.operands[1], ins)
    to_double = "F64" in ins.modifiers
    to = sink64(ins.operands[0], ins) if to_double else sink(ins.operands[0], ins)

    def run(w: Any, m: np.ndarray) -> None:
        bits = a(w)
        number = bits.view((np.int64 if wide else np.int32) if signed else bits.dtype)
        exact = np.asarray(number).astype(F64)
        to(w, m, exact if to_double else rounded(exact, ins).astype(F32).view(U32))

    return run


MODES = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}


@operation("F2I")
def to_integer(ins: Instruction) -> Run:
    double, wide = "F64" in ins.modifiers, bool(ins.modifiers & {"S64", "U64"})
    signed = not ins.modifiers & {"U32", "U64"}
    a = (float64 if double else float32)(ins.operands[1], ins)
    to = sink64(ins.operands[0], ins) if wide else sink(ins.operands[0], ins)
    mode = next((MODES[name] for name in MODES if name in ins.modifiers), np.rint)
    bits = 64 if wide else 32
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def one(x: float) -> int:
        if math.isnan(x):
            return least if wide else 0
        return most if x >= most else least if x <= least else int(x)

    def run(w: Any, m: np.ndarray) -> None:
        number = np.broadcast_to(mode(a(w).astype(F64)), (32,))
        if wide:
            whole = np.array([one(float(x)) & (2**64 - 1) for x in number], U64)
        else:
            whole = np.where(np.isnan(number), 0, np.clip(number, least, most)).astype(np.int64).astype(U64)
        to(w, m, whole)

    return run


@operation("F2F")
def convert(ins: Instruction) -> Run:
    if ins.operands and "F32.F64" in ins.opcode:
        to, a = sink(ins.operands[0], ins), float64(ins.operands[1], ins)
        return lambda w, m: to(w, m, rounded(a(w), ins).astype(F32).view(U32))
    if "F64.F32" in ins.opcode:
        to, a = sink64(ins.operands[0], ins), float32(ins.operands[1], ins)
        return lambda w, m: to(w, m, np.asarray(a(w)).astype(F64))
    if "BF16.F32" in ins.opcode or "F16.F32" in ins.opcode:
        to, a = sink(ins.operands[0], ins), float32(ins.operands[1], ins)
        narrow = to_bfloat16 if "BF16" in ins.modifiers else to_half
        return lambda w, m: to(w, m, narrow(a(w)))
    raise UnknownInstruction(str(ins))


@operation("FRND")
def to_whole(ins: Instruction) -> Run:
    mode = next((MODES[name] for name in MODES if name in ins.modifiers), np.rint)
    to, a = sink(ins.operands[0], ins), float32(ins.operands[1], ins)
    return lambda w, m: to(w, m, np.asarray(mode(a(w))).astype(F32).view(U32))


def exactly(compute: Callable[..., Fraction], *numbers: float) -> float:
    if all(map(math.isfinite, numbers)):
        exact = compute(*(Fraction(x) for x in numbers))
        if exact == 0:
            return float(compute(*map(float, numbers)))  # type: ignore[arg-type]
        try:
            return exact.numerator / exact.denominator
        except OverflowError:
            return math.inf if exact > 0 else -math.inf
    with np.errstate(all="ignore"):
        return float(compute(*map(F64, numbers)))  # type: ignore[arg-type]


@operation("DADD", "DMUL", "DFMA")
def in_float64(ins: Instruction) -> Run:
    """Compute in float64; ignore rounding modes as in DMUL.RP, which only correct a last bit in divisions."""
    to = sink64(ins.operands[0], ins)
    count = 3 if ins.base == "DFMA" else 2
    sources = [float64(text, ins) for text in ins.operands[1 : 1 + count]]
    compute = {"DADD": SUM, "DMUL": PRODUCT, "DFMA": FUSED}[ins.base]

    def run(w: Any, m: np.ndarray) -> None:
        given = [np.broadcast_to(source(w), (32,)) for source in sources]
        result = np.zeros(32, F64)
        for lane in np.flatnonzero(m):
            result[lane] = exactly(compute, *(float(value[lane]) for value in given))
        to(w, m, result)

    return run
