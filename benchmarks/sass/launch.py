"""Run a kernel, with its parameters and memory, block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.sass.disassembly import Kernel
from benchmarks.sass.execution import SHARED_RESERVED, Block, Program
from benchmarks.sass.memory import Constants, Ledger, Memory

GLOBAL = 0x7_0000_0000  # where global memory begins
SHARED_LIMIT = 227 << 10  # bytes that a block may have on sm_90


@dataclass
class Launch:
    """A launch to count; `per` names the unit of work of the counts."""

    kernel: Kernel
    workload: str
    per: str
    units_of_block: float
    units: float  # of the whole workload
    memory: Memory
    constants: Constants
    grid: int
    chosen: list[int]  # blocks that stand for all
    threads: int
    addresses: dict[str, int]
    check: Callable[[int], None] = lambda blocks: None  # raises if blocks did not do the assumed work
    shared_touched: int = 0
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        self.program = Program(self.kernel.instructions)

    def run(self, index: int) -> Ledger:
        """Run one block."""
        stack = (self.kernel.stack + 15) // 16 * 16
        block = Block(self.program, self.constants, self.memory, index, self.threads, SHARED_LIMIT, stack)
        ledger = block.run()
        reserved = SHARED_RESERVED if self.kernel.arch >= 90 else 0
        self.shared_touched = max(self.shared_touched, block.shared.touched - reserved)
        return ledger


def constant_bank(kernel: Kernel, parameters: bytes, grid: int, threads: int) -> Constants:
    """Make bank 0: sizes of block and grid, the stack, and the parameters.

    Raises:
        ValueError: the kernel takes another number of bytes.
    """
    if len(parameters) != kernel.parameter_bytes:
        raise ValueError(
            f"{kernel.name} takes {kernel.parameter_bytes} bytes of parameters, the structs in csrc have "
            f"{len(parameters)}. Build the library again."
        )
    bank = bytearray(kernel.parameter_offset + len(parameters))
    for at, number in ((0, threads), (4, 1), (8, 1), (12, grid), (16, 1), (20, 1)):
        bank[at : at + 4] = number.to_bytes(4, "little")
    bank[0x28:0x2C] = ((kernel.stack + 15) // 16 * 16).to_bytes(4, "little")
    bank[kernel.parameter_offset :] = parameters
    banks = {number: data for number, data in kernel.constants.items() if number != 0}
    return Constants({**banks, 0: bytes(bank)})
