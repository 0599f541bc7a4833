"""Small programs in machine code, assembled and executed."""

from __future__ import annotations

import numpy as np

from benchmarks.sass.execution import Block, Program
from benchmarks.sass.instructions import Instruction, split_operands
from benchmarks.sass.memory import Constants, Ledger, Memory

BASE = 1 << 20
LANES = np.arange(32)
EVERYONE = np.ones(32, bool)


def assemble(text: str) -> list[Instruction]:
    """Parse one instruction a line; a name with a colon is the address of the next one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names, code = {}, []
    for line in lines:
        if line.endswith(":"):
            names[line[:-1]] = len(code) * 16
        else:
            code.append(line)
    instructions = []
    for i, line in enumerate(code):
        words = line.split(None, 2 if line.startswith("@") else 1)
        guard = words.pop(0) if line.startswith("@") else ""
        operands = split_operands(words[1] if len(words) > 1 else "")
        ins = Instruction(16 * i, words[0], operands, guard)
        if operands and operands[-1] in names:
            ins.target = names[operands[-1]]
        instructions.append(ins)
    return instructions


def execute(text: str, threads: int = 32, stack: int = 64) -> tuple[Block, Ledger, Memory]:
    """Run a block; c[0x0][0x0] is the address of global memory."""
    memory = Memory("global", 1 << 16, BASE)
    constants = Constants({0: BASE.to_bytes(8, "little") + bytes(64)})
    block = Block(Program(assemble(text)), constants, memory, 0, threads, 4096, stack)
    return block, block.run(), memory


def stored(memory: Memory, count: int = 32) -> np.ndarray:
    return memory.get(BASE, np.uint32, (count,))


# Every thread's R5 goes to its own word of global memory.
STORE = """
S2R R0, SR_TID.X
ULDC.64 UR4, c[0x0][0x0]
IMAD.U32 R2, RZ, RZ, UR4
IMAD.U32 R3, RZ, RZ, UR5
IMAD.WIDE.U32 R2, R0, 0x4, R2
STG.E desc[UR4][R2.64], R5
EXIT
"""
LOOP = """
S2R R0, SR_TID.X
MOV R4, 0x0
MOV R5, 0x0
again:
IADD3 R5, R5, R0, RZ
IADD3 R4, R4, 0x1, RZ
ISETP.NE.AND P0, PT, R4, 0xa, PT
@P0 BRA again
"""
