"""Execute a block of a kernel: warps, how they diverge and converge, barriers.

A warp is a list of splits: lanes with one program counter. A branch that lanes disagree on makes two; BSSY names the
lanes that meet at a BSYNC, where they are joined again, as the hardware does it. Warps run one after the other, each
until it waits: the order of atomics is one of those that a GPU could choose.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.sass.arithmetic import BUILDERS, U32, Run, operation
from benchmarks.sass.instructions import (
    ADDRESS_BYTES,
    Instruction,
    Source,
    UnknownInstruction,
    integer,
    predicate,
    sink,
)
from benchmarks.sass.memory import LANES, SHARED_WINDOW, Constants, Ledger, Memory

for _name in ("floating", "halves", "lanes", "logic", "memory"):
    importlib.import_module(f"benchmarks.sass.{_name}")  # fill BUILDERS

STEPS = 3_000_000  # of a warp, before it counts as endless
NO_OPERATION = {
    *("NOP", "YIELD", "NANOSLEEP", "MEMBAR", "FENCE", "ERRBAR", "CCTL", "CCTLL", "DEPBAR", "LDGDEPBAR"),
    *("ENDCOLLECTIVE", "PREEXIT", "ACQBULK", "PMTRIG", "WARPGROUP", "LEPC"),
}
CONTROL = {"BRA", "EXIT", "BSSY", "BSYNC", "BREAK", "CALL", "RET", "WARPSYNC", "BAR", "BPT", "BMOV", "JMP"}
SHARED_RESERVED = 1024  # from sm_90 on, in front of a block's own shared memory


class Stuck(RuntimeError):
    """Warps wait for each other, or one never ends, or the kernel gave up."""


@dataclass(eq=False)
class Split:
    pc: int
    lanes: np.ndarray
    waits: str = ""  # "B3", "W", "BAR0"; empty: it runs
    meets: np.ndarray | None = None  # of "W": the lanes that must arrive
    arrived: Any = None  # of BAR.RED: the predicate


@dataclass(eq=False)
class Step:
    """One instruction, ready to be executed."""

    ins: Instruction
    run: Run | None
    guard: Source | None
    conditions: list[Source] = field(default_factory=list)


class Program:
    """The instructions of a kernel and its subroutines. Unknown ones are an error only when they are reached."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self.instructions = instructions
        self.steps: list[Step | None] = [None] * len(instructions)

    def step(self, index: int) -> Step:
        step = self.steps[index]
        if step is None:
            ins = self.instructions[index]
            guard = predicate(ins.predicate[1:], ins) if ins.predicate else None
            conditions = []
            if ins.base == "BRA" and "DIV" not in ins.modifiers:
                conditions = [predicate(text, ins) for text in ins.operands if re.match(r"!?U?P[\dT]$", text)]
            run = None
            if ins.base in BUILDERS:
                run = BUILDERS[ins.base](ins)
            elif ins.base not in CONTROL and ins.base not in NO_OPERATION:
                raise UnknownInstruction(str(ins))
            step = self.steps[index] = Step(ins, run, guard, conditions)
        return step


SPECIAL = {
    "SR_TID.X": lambda w: w.thread,
    "SR_TID.Y": lambda w: np.zeros(32, U32),
    "SR_TID.Z": lambda w: np.zeros(32, U32),
    "SR_CTAID.X": lambda w: U32(w.block.index),
    "SR_CTAID.Y": lambda w: U32(0),
    "SR_CTAID.Z": lambda w: U32(0),
    "SR_LANEID": lambda w: LANES.astype(U32),
    "SR_CgaCtaId": lambda w: U32(0),
    "SR_SWINHI": lambda w: U32(SHARED_WINDOW),
    "SR_LTMASK": lambda w: ((1 << LANES) - 1).astype(U32),
    "SR_LEMASK": lambda w: ((2 << LANES) - 1).astype(U32),
    "SR_GTMASK": lambda w: ~((2 << LANES) - 1).astype(U32),
    "SR_GEMASK": lambda w: ~((1 << LANES) - 1).astype(U32),
    "SR_EQMASK": lambda w: (1 << LANES).astype(U32),
}


@operation("S2R", "S2UR")
def special_register(ins: Instruction) -> Run:
    if ins.operands[1] not in SPECIAL:
        raise UnknownInstruction(str(ins))
    to, read = sink(ins.operands[0], ins), SPECIAL[ins.operands[1]]
    return lambda w, m: to(w, m, read(w))


@operation("B2R")
def barrier_result(ins: Instruction) -> Run:
    if "RESULT" not in ins.modifiers:
        raise UnknownInstruction(str(ins))
    to = sink(ins.operands[0], ins)
    truth = sink(ins.operands[1], ins) if len(ins.operands) > 1 else None

    def run(w: Any, m: np.ndarray) -> None:
        to(w, m, U32(w.block.result))
        if truth:
            truth(w, m, np.bool_(w.block.result_truth))

    return run


class Warp:
    def __init__(self, block: Block, number: int, threads: int, local_bytes: int) -> None:
        self.block, self.constants = block, block.constants
        self.thread = (LANES + 32 * number).astype(U32)
        self.R = np.zeros((256, 32), U32)
        self.P = np.zeros((8, 32), bool)
        self.UR = np.zeros(64, U32)
        self.UP = np.zeros(8, bool)
        self.barriers: dict[int, tuple[np.ndarray, int]] = {}
        self.local_bytes = local_bytes
        self.local = Memory("local", 32 * max(16, local_bytes))
        alive = self.thread < threads
        self.exited = ~alive
        self.splits = [Split(0, alive)]
        self.executed = 0

    def run(self) -> None:
        """Run until every lane has ended or waits for the block."""
        while True:
            split = next((s for s in reversed(self.splits) if not s.waits), None)
            if split is None:
                if not self.join():
                    return
                continue
            self.advance(split)

    def join(self) -> bool:
        """Continue lanes that have met; return whether there were any."""
        for split in self.splits:
            if split.waits[:1] == "B" and not split.waits.startswith("BAR"):
                number = int(split.waits[1:])
                expected, target = self.barriers[number]
            elif split.waits == "W" and split.meets is not None:
                expected, target = split.meets, split.pc
            else:
                continue
            together = [s for s in self.splits if s.waits == split.waits and (split.waits != "W" or s.pc == split.pc)]
            here = np.logical_or.reduce([s.lanes for s in together])
            if ((expected & ~self.exited) & ~here).any():
                continue
            self.splits = [s for s in self.splits if s not in together]
            self.splits.append(Split(target, here))
            return True
        return False

    def advance(self, split: Split) -> None:
        program, counts = self.block.program, self.block.ledger.at
        while True:
            index = split.pc // ADDRESS_BYTES
            step = program.step(index)
            counts[split.pc] += 1
            self.executed += 1
            if self.executed > STEPS:
                raise Stuck(f"a warp has executed {STEPS} instructions, the last one {step.ins}")
            lanes = split.lanes
            if step.guard is not None:
                lanes = lanes & step.guard(self)
            if step.run is not None:
                if step.guard is None or 1 in lanes.tobytes():
                    step.run(self, lanes)
                split.pc += ADDRESS_BYTES
            elif not self.control(split, step, lanes):
                return

    def move(self, split: Split, lanes: np.ndarray, target: int) -> bool:
        """Continue some lanes of a split elsewhere; return whether the split still runs."""
        if (lanes == split.lanes).all():
            split.pc = target
            return True
        split.lanes = split.lanes & ~lanes
        self.splits.append(Split(target, lanes))
        return False  # the new one runs first

    def control(self, split: Split, step: Step, lanes: np.ndarray) -> bool:
        ins, base, following = step.ins, step.ins.base, split.pc + ADDRESS_BYTES
        if base in NO_OPERATION or (base != "BAR" and 1 not in lanes.tobytes()):
            split.pc = following
            return True
        if base == "BRA":
            if "DIV" in ins.modifiers:
                mask = int(integer(ins.operands[0], ins)(self))
                diverged = bool((((mask >> LANES) & 1).astype(bool) & ~self.exited & ~split.lanes).any())
                lanes = lanes & diverged
            for condition in step.conditions:
                lanes = lanes & condition(self)
            taken = lanes
            rest = split.lanes & ~taken
            split.pc = following
            if 1 not in taken.tobytes():
                return True
            assert ins.target is not None
            if 1 not in rest.tobytes():
                split.pc = ins.target
                return True
            return self.move(split, taken, ins.target)
        if base == "EXIT":
            self.exited = self.exited | lanes
            split.lanes = split.lanes & ~lanes
            split.pc = following
            if 1 not in split.lanes.tobytes():
                self.splits.remove(split)
                return False
            return True
        if base in ("BSSY", "BREAK", "BMOV"):
            self.convergence(split, ins, lanes)
            split.pc = following
            return True
        if base == "BSYNC":
            return self.wait(split, lanes, Split(split.pc, lanes, ins.operands[0]), following)
        if base == "WARPSYNC":
            meets = np.ones(32, bool)
            if "ALL" not in ins.modifiers:
                mask = np.broadcast_to(integer(ins.operands[0], ins)(self), (32,))[int(lanes.argmax())]
                meets = ((int(mask) >> LANES) & 1).astype(bool)
            target = ins.target if ins.target is not None else following
            return self.wait(split, lanes, Split(target, lanes, "W", meets), following)
        if base == "BAR":
            return self.wait(split, split.lanes, self.block_barrier(split, ins), following)
        if base == "CALL":
            if ins.target is None:
                raise Stuck(f"the kernel calls a function, which is probably printf: {ins}")
            return self.move(split, lanes, ins.target)
        if base == "RET":
            targets = np.broadcast_to(integer(ins.operands[0], ins)(self), (32,))
            split.pc = following
            target = int(targets[int(lanes.argmax())])
            return self.move(split, lanes & (targets == target), target)
        if base == "BPT":
            raise Stuck(f"the kernel traps: {ins}")
        raise UnknownInstruction(str(ins))

    def wait(self, split: Split, lanes: np.ndarray, waiting: Split, following: int) -> bool:
        rest = split.lanes & ~lanes
        self.splits.append(waiting)
        if rest.any():
            split.lanes, split.pc = rest, following
            return True
        self.splits.remove(split)
        return False

    def convergence(self, split: Split, ins: Instruction, lanes: np.ndarray) -> None:
        if ins.base == "BSSY":
            assert ins.target is not None
            self.barriers[int(ins.operands[0][1:])] = (lanes.copy(), ins.target)
        elif ins.base == "BREAK":
            number = int(ins.operands[-1][1:])
            members, target = self.barriers[number]
            self.barriers[number] = (members & ~lanes, target)
        else:  # BMOV saves and restores them around calls
            raise UnknownInstruction(str(ins))

    def block_barrier(self, split: Split, ins: Instruction) -> Split:
        if "SYNC" not in ins.modifiers and "RED" not in ins.modifiers:
            raise UnknownInstruction(str(ins))
        if "SYNC" in ins.modifiers and len(ins.operands) > 1:
            raise UnknownInstruction(f"{ins}: a barrier for some warps")
        waiting = Split(split.pc + ADDRESS_BYTES, split.lanes, f"BAR{ins.operands[0]}")
        if "RED" in ins.modifiers:
            truth = np.broadcast_to(predicate(ins.operands[-1], ins)(self), (32,)) & split.lanes
            waiting.arrived = (next(n for n in ("AND", "OR", "POPC") if n in ins.modifiers), truth)
        return waiting


@dataclass(eq=False)
class Block:
    """One block of a launch; `run()` executes it and fills the ledger."""

    program: Program
    constants: Constants
    memory: Memory
    index: int
    threads: int
    shared_bytes: int
    local_bytes: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    result: int = 0
    result_truth: bool = False

    def __post_init__(self) -> None:
        self.shared = Memory("shared", self.shared_bytes + SHARED_RESERVED, fill=0xFF)
        self.warps = [Warp(self, i, self.threads, self.local_bytes) for i in range((self.threads + 31) // 32)]

    def run(self) -> Ledger:
        with np.errstate(all="ignore"):
            while True:
                for warp in self.warps:
                    warp.run()
                splits = [s for warp in self.warps for s in warp.splits]
                if not splits:
                    return self.ledger
                self.release(splits)

    def release(self, splits: list[Split]) -> None:
        """Continue all live threads, which have reached one barrier."""
        if len({s.waits for s in splits}) != 1 or not splits[0].waits.startswith("BAR"):
            raise Stuck(f"threads wait for {sorted({s.waits for s in splits})}")
        arrivals = [s.arrived for s in splits if s.arrived]
        if arrivals:
            self.result = sum(int(truth.sum()) for _, truth in arrivals)
            everyone = sum(int(s.lanes.sum()) for s in splits)
            self.result_truth = self.result == everyone if arrivals[0][0] == "AND" else self.result > 0
        for warp in self.warps:
            together: dict[int, Split] = {}
            for split in warp.splits:
                split.waits, split.arrived = "", None
                if split.pc in together:
                    together[split.pc].lanes = together[split.pc].lanes | split.lanes
                else:
                    together[split.pc] = split
            warp.splits = list(together.values())
