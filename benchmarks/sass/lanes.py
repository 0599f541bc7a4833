"""Execute what exchanges values between the lanes of a warp: shuffles, votes, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.sass.arithmetic import U32, Run, operation
from benchmarks.sass.instructions import (
    Instruction,
    UnknownInstruction,
    integer,
    integer64,
    is_predicate,
    predicate,
    sink,
)
from benchmarks.sass.memory import LANES, all_lanes


@operation("SHFL")
def shuffle(ins: Instruction) -> Run:
    in_range, to = sink(ins.operands[0], ins), sink(ins.operands[1], ins)
    a, b, c = (integer(text, ins) for text in ins.operands[2:5])
    mode = next(name for name in ("IDX", "UP", "DOWN", "BFLY") if name in ins.modifiers)

    def run(w: Any, m: np.ndarray) -> None:
        by, limits = b(w).astype(np.int64) & 31, c(w).astype(np.int64)
        clamp, segment = limits & 31, (limits >> 8) & 31
        most = (LANES & segment) | (clamp & ~segment)
        least = LANES & segment
        if mode == "UP":
            source = LANES - by
            valid = source >= most
        elif mode == "DOWN":
            source = LANES + by
            valid = source <= most
        elif mode == "BFLY":
            source = LANES ^ by
            valid = source <= most
        else:
            source = least | (by & ~segment)
            valid = source <= most
        source = np.broadcast_to(np.where(valid, source, LANES), (32,))
        value = all_lanes(a(w))[source]
        in_range(w, m, valid)
        to(w, m, value)

    return run


@operation("VOTE", "VOTEU")
def vote(ins: Instruction) -> Run:
    operands = list(ins.operands)
    ballot = sink(operands.pop(0), ins) if not is_predicate(operands[0]) else None
    result, given = sink(operands[0], ins), predicate(operands[-1], ins)
    name = next(name for name in ("ALL", "ANY", "EQ") if name in ins.modifiers)

    def run(w: Any, m: np.ndarray) -> None:
        truth = all_lanes(given(w)) & m
        count = int(truth.sum())
        if ballot:
            ballot(w, m, U32(int((truth.astype(np.int64) << LANES).sum())))
        total = int(m.sum())
        answer = {"ALL": count == total, "ANY": count > 0, "EQ": count in (0, total)}[name]
        result(w, m, np.bool_(answer))

    return run


@operation("MATCH")
def match_any(ins: Instruction) -> Run:
    if "ANY" not in ins.modifiers:
        raise UnknownInstruction(str(ins))
    to = sink(ins.operands[0], ins)
    read = integer64 if "U64" in ins.modifiers else integer
    a = read(ins.operands[1], ins)

    def run(w: Any, m: np.ndarray) -> None:
        value = all_lanes(a(w))
        equal = (value[:, None] == value[None, :]) & m[None, :]
        to(w, m, (equal.astype(np.int64) << LANES[None, :]).sum(1))

    return run


@operation("REDUX", "CREDUX")
def reduce(ins: Instruction) -> Run:
    to, a = sink(ins.operands[0], ins), integer(ins.operands[-1], ins)
    view = np.int32 if "S32" in ins.modifiers else U32
    functions = {"SUM": np.add, "MIN": np.minimum, "MAX": np.maximum, "OR": np.bitwise_or, "XOR": np.bitwise_xor}
    function = next((functions[name] for name in functions if name in ins.modifiers), np.bitwise_and)

    def run(w: Any, m: np.ndarray) -> None:
        value = all_lanes(a(w))[m].view(view)
        to(w, m, np.asarray(function.reduce(value)).astype(view).view(U32))

    return run
