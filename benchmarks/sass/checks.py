"""Find in a disassembly, without executing it, blocks, loops, and what should not be in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.sass.disassembly import Kernel
from benchmarks.sass.instructions import ADDRESS_BYTES, Instruction


@dataclass(eq=False)
class BasicBlock:
    start: int  # index of the first instruction
    end: int  # after the last
    following: list[int] = field(default_factory=list)  # starts of blocks


def _conditional(ins: Instruction) -> bool:
    return bool(ins.predicate) or len(ins.operands) > 1 or "DIV" in ins.modifiers


def basic_blocks(instructions: list[Instruction]) -> dict[int, BasicBlock]:
    """Return blocks by their first instruction's index. A call falls through: subroutines have no edges to callers."""
    targets = {0}
    for i, ins in enumerate(instructions):
        if ins.target is not None and ins.base in ("BRA", "CALL", "WARPSYNC", "JMP"):
            targets.add(ins.target // ADDRESS_BYTES)
        if ins.base in ("BRA", "EXIT", "RET", "JMP", "BRX") or (ins.base == "BPT" and "TRAP" in ins.modifiers):
            targets.add(i + 1)
    starts = sorted(start for start in targets if start < len(instructions))
    blocks = {}
    for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True):
        block, last = BasicBlock(start, end), instructions[end - 1]
        ends = (last.base in ("EXIT", "RET") and not last.predicate) or last.base in ("BPT", "BRX")
        if last.base in ("BRA", "JMP", "WARPSYNC") and last.target is not None:
            block.following.append(last.target // ADDRESS_BYTES)
            ends = last.base != "WARPSYNC" and not _conditional(last)
        if not ends and end < len(instructions):
            block.following.append(end)
        blocks[start] = block
    return blocks


def _dominators(blocks: dict[int, BasicBlock]) -> dict[int, set[int]]:
    before: dict[int, list[int]] = {start: [] for start in blocks}
    for start, block in blocks.items():
        for after in block.following:
            before[after].append(start)
    roots = {start for start in blocks if not before[start]} | {0}
    everything = set(blocks)
    dominators = {start: {start} if start in roots else set(everything) for start in blocks}
    changed = True
    while changed:
        changed = False
        for start in blocks:
            if start in roots:
                continue
            new = set.intersection(*(dominators[p] for p in before[start])) | {start}
            if new != dominators[start]:
                dominators[start], changed = new, True
    return dominators


@dataclass(eq=False)
class Loop:
    """A natural loop: `blocks` by their starts, of which the header comes before all others."""

    header: int
    blocks: set[int]
    depth: int = 1


def loops(instructions: list[Instruction]) -> list[Loop]:
    """Return all natural loops, those with the same header as one; depth 1 is outermost."""
    blocks = basic_blocks(instructions)
    dominators = _dominators(blocks)
    before: dict[int, list[int]] = {start: [] for start in blocks}
    for start, block in blocks.items():
        for after in block.following:
            before[after].append(start)
    found: dict[int, Loop] = {}
    for start, block in blocks.items():
        for header in block.following:
            if header not in dominators[start]:
                continue
            loop = found.setdefault(header, Loop(header, {header}))
            waiting = [start]
            while waiting:
                inner = waiting.pop()
                if inner not in loop.blocks:
                    loop.blocks.add(inner)
                    waiting += before[inner]
    result = sorted(found.values(), key=lambda loop: loop.header)
    for loop in result:
        loop.depth = sum(loop.header in other.blocks for other in result)
    return result


def in_loops(instructions: list[Instruction]) -> Iterator[tuple[Loop, Instruction]]:
    """Yield each instruction in a loop, with the innermost one."""
    blocks = basic_blocks(instructions)
    innermost: dict[int, Loop] = {}
    for loop in sorted(loops(instructions), key=lambda loop: loop.depth):
        innermost.update(dict.fromkeys(loop.blocks, loop))
    for start, loop in innermost.items():
        for ins in instructions[blocks[start].start : blocks[start].end]:
            yield loop, ins


def _matching(found: Iterator[Instruction], wrong: Callable[[Instruction], bool]) -> list[str]:
    return [str(ins) for ins in found if wrong(ins)]


def local_memory_in_loops(kernel: Kernel) -> list[str]:
    """Find spilled registers and arrays in local memory that a loop touches."""
    return _matching((ins for _, ins in in_loops(kernel.instructions)), lambda ins: ins.base in ("LDL", "STL"))


def byte_loads_of_shared(kernel: Kernel) -> list[str]:
    """Find neighbouring bytes of shared memory loaded one by one: a vector that the compiler took for unaligned."""
    loads: dict[str, dict[int, Instruction]] = {}
    for ins in kernel.instructions:
        if ins.base == "LDS" and ins.width == 1:
            found = re.fullmatch(r"\[(.*?)(?:\+(-?0x[0-9a-f]+))?\]", ins.operands[-1])
            if found is not None:
                loads.setdefault(found[1], {})[int(found[2] or "0", 16)] = ins
    return [
        str(ins) for of_base in loads.values() for at, ins in of_base.items() if at - 1 in of_base or at + 1 in of_base
    ]


def generic_accesses(kernel: Kernel) -> list[str]:
    """Find loads, stores and atomics whose memory is decided at run time."""
    return _matching(iter(kernel.instructions), lambda ins: ins.base in ("LD", "ST", "ATOM"))


def doubles(kernel: Kernel) -> list[str]:
    """Find arithmetic in float64."""
    return _matching(iter(kernel.instructions), lambda ins: ins.base in ("DADD", "DMUL", "DFMA", "DSETP"))


def narrow_reductions(kernel: Kernel) -> list[str]:
    """Find floating-point reductions to global memory of less than 16 bytes a lane."""
    return _matching(
        iter(kernel.instructions),
        lambda ins: ins.base in ("RED", "REDG", "ATOMG") and ins.width < 16 and any("F" in m for m in ins.modifiers),
    )


def flushing_reductions(kernel: Kernel) -> list[str]:
    """Find reductions that flush subnormal numbers to zero: those of float32 do on every GPU."""
    return _matching(iter(kernel.instructions), lambda ins: ins.base in ("RED", "REDG") and "FTZ" in ins.modifiers)


def narrow_loads_in_loops(kernel: Kernel, least: int = 16) -> list[str]:
    """Find global loads of fewer than `least` bytes a lane in the innermost loops."""
    deepest = max((loop.depth for loop in loops(kernel.instructions)), default=0)
    return _matching(
        (ins for loop, ins in in_loops(kernel.instructions) if loop.depth == deepest),
        lambda ins: ins.base == "LDG" and ins.width < least,
    )
