"""Model the memories of a GPU, and execute loads, stores and atomics.

Every access adds to the block's ledger what the hardware would have to do: wavefronts of shared memory (32 banks of
four bytes; 8 lanes at a time where a lane moves 16 bytes, 16 lanes at 8), lines of 128 bytes and sectors of 32 of
global memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.sass.arithmetic import U32, Run, operation
from benchmarks.sass.instructions import (
    Instruction,
    UnknownInstruction,
    Value,
    address_parts,
    integer,
    is_predicate,
    register,
    sink,
)

LANES = np.arange(32)


class BadAccess(RuntimeError):
    """A load or store outside the allocated memory, or not aligned to its size."""


@dataclass
class Ledger:
    """What was executed."""

    at: Counter[int] = field(default_factory=Counter)  # warp instructions by address
    memory: Counter[str] = field(default_factory=Counter)  # "shared wavefronts", "LDG sectors", ...

    def add(self, other: Ledger) -> None:
        self.at.update(other.at)
        self.memory.update(other.memory)


class Memory:
    """Bytes from `base` on. Zero at first; shared memory is filled with 0xff, NaN in every format."""

    def __init__(self, name: str, size: int, base: int = 0, fill: int = 0) -> None:
        self.name, self.base, self.size = name, base, size
        self.words = np.full((size + 15) // 16 * 4, fill * 0x01010101, U32)
        self.bytes = self.words.view(np.uint8)
        self.used = 0
        self.touched = 0  # end of the highest access

    def allocate(self, size: int) -> int:
        at = (self.used + 255) // 256 * 256
        if at + size > self.size:
            raise BadAccess(f"{self.name}: {size} bytes do not fit into the {self.size - at} that are left")
        self.used = at + size
        return self.base + at

    def put(self, array: np.ndarray) -> int:
        """Copy an array in; return its address."""
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        at = self.allocate(max(raw.size, 1))
        self.bytes[at - self.base : at - self.base + raw.size] = raw
        return at

    def get(self, at: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        size = count * np.dtype(dtype).itemsize
        return self.bytes[at - self.base : at - self.base + size].view(dtype).reshape(shape).copy()

    def offsets(self, addresses: np.ndarray, m: np.ndarray, width: int, ins: Instruction) -> np.ndarray:
        """Check the addresses of the lanes in `m`; return their offsets, 0 for the others."""
        offsets = addresses - self.base
        offsets[~m] = 0
        if offsets.min() < 0 or offsets.max() + width > self.size or int(np.bitwise_or.reduce(offsets)) & (width - 1):
            bad = addresses[m][:4]
            raise BadAccess(f"{ins}: {self.name} memory at {', '.join(f'{int(x):#x}' for x in bad)}, ...")
        self.touched = max(self.touched, int(offsets.max()) + width)
        return offsets

    def read(self, offsets: np.ndarray, width: int, signed: bool) -> list[np.ndarray]:
        if width >= 4:
            first = offsets >> 2
            return [self.words[first + i] for i in range(width // 4)]
        if width == 2:
            values = self.words.view(np.uint16)[offsets >> 1]
            return [values.view(np.int16).astype(np.int32).view(U32) if signed else values.astype(U32)]
        values = self.bytes[offsets]
        return [values.view(np.int8).astype(np.int32).view(U32) if signed else values.astype(U32)]

    def write(self, offsets: np.ndarray, m: np.ndarray, width: int, values: list[np.ndarray]) -> None:
        chosen = offsets[m]
        if width >= 4:
            for i, value in enumerate(values):
                self.words[(chosen >> 2) + i] = value[m]
        elif width == 2:
            self.words.view(np.uint16)[chosen >> 1] = values[0][m]
        else:
            self.bytes[chosen] = values[0][m]


class Constants:
    """The constant banks of one launch."""

    def __init__(self, banks: dict[int, bytes]) -> None:
        self.banks = {bank: np.frombuffer(data + bytes(16), np.uint8) for bank, data in banks.items()}

    def load(self, bank: int, at: Value, width: int, signed: bool) -> Value:
        if bank not in self.banks:
            raise BadAccess(f"constant bank {bank} is not known")
        data = self.banks[bank]
        offsets = np.atleast_1d(np.asarray(at, np.int64))
        if (offsets < 0).any() or (offsets + width > data.size).any():
            raise BadAccess(f"constant bank {bank} at {offsets}")
        parts = [data[offsets + i].astype(np.uint64) << np.uint64(8 * i) for i in range(width)]
        value = sum(parts[1:], parts[0])
        if signed and width < 4:
            top = np.uint64(1 << (8 * width - 1))
            value = (value ^ top) - top
        value = value if width == 8 else value.astype(U32)
        return value if np.ndim(at) else value[0]


def all_lanes(value: Value) -> np.ndarray:
    """Repeat a uniform value for each lane."""
    return value if np.ndim(value) else np.full(32, value)


def words_of(width: int) -> int:
    return max(1, width // 4)


def shared_wavefronts(offsets: np.ndarray, m: np.ndarray, width: int) -> int:
    """Count how often the 32 banks are used; lanes that read the same word share it."""
    together = {16: 8, 8: 16}.get(width, 32)
    units, banks = max(4, width), 128 // max(4, width)  # of vectors; each covers as many banks as it has words
    total = 0
    for first in range(0, 32, together):
        lanes = slice(first, first + together)
        chosen = set((offsets[lanes][m[lanes]] // units).tolist())
        if chosen:
            total += max(Counter([vector % banks for vector in chosen]).values()) if len(chosen) > 1 else 1
    return total


def count_sectors(addresses: np.ndarray, m: np.ndarray, width: int) -> tuple[int, int, int]:
    """Count the lines, the sectors and the partly covered sectors of one instruction."""
    covered: dict[int, int] = {}
    for address in set(addresses[m].tolist()):  # an access is aligned to its width, so it lies in one sector
        covered[address >> 5] = covered.get(address >> 5, 0) + width
    return len({sector >> 2 for sector in covered}), len(covered), sum(size < 32 for size in covered.values())


def address_of(ins: Instruction, text: str) -> Callable[[Any], np.ndarray]:
    found = re.fullmatch(r"(?:desc\[UR\d+\])?\[(.*)\]", text)
    if found is None:
        raise UnknownInstruction(str(ins))
    base, offset = address_parts(found[1], ins)
    return lambda w: all_lanes(base(w) + offset)


def vector_of(text: str, count: int, ins: Instruction) -> list[str]:
    """Return the names of `count` consecutive registers."""
    found = register(text)
    if found is None:
        raise UnknownInstruction(str(ins))
    kind, number = found
    return [f"{kind}Z" if number < 0 else f"{kind}{number + i}" for i in range(count)]


def registers_of(text: str, count: int, ins: Instruction) -> list[Callable[[Any], np.ndarray]]:
    sources = [integer(name, ins) for name in vector_of(text, count, ins)]
    return [lambda w, source=source: all_lanes(source(w)) for source in sources]


def sinks_of(text: str, count: int, ins: Instruction) -> list[Callable[..., None]]:
    return [sink(name, ins) for name in vector_of(text, count, ins)]


SPACES = {"G": "global", "S": "shared", "L": "local", "D": "generic", "T": "generic", "M": "generic"}
SHARED_WINDOW = 0x7F  # upper half of the generic addresses of shared memory: SR_SWINHI


def space_of(ins: Instruction) -> str:
    """Return the memory of LDG, STS, ATOMS, ...; for a generic access, the address decides during execution."""
    return SPACES["G" if ins.base == "RED" else ins.base[-1]]


def memory_and_address(w: Any, space: str, addresses: np.ndarray, m: np.ndarray) -> tuple[Memory, np.ndarray]:
    if space == "global":
        return w.block.memory, addresses
    if space == "shared":
        return w.block.shared, addresses & 0xFFFFFFFF
    if space == "local":
        return w.local, (addresses & 0xFFFFFFFF) + LANES * w.local_bytes
    shared = (addresses >> 32 == SHARED_WINDOW)[m]
    if shared.any() != shared.all():
        raise BadAccess("lanes of a generic access use different memories")
    return (w.block.shared, addresses & 0xFFFFFFFF) if shared.any() else (w.block.memory, addresses)


def note(w: Any, memory: Memory, ins: Instruction, offsets: np.ndarray, addresses: np.ndarray, m: np.ndarray) -> None:
    space = memory.name
    ledger: Counter[str] = w.block.ledger.memory
    if space == "shared":
        ledger["shared wavefronts"] += shared_wavefronts(offsets, m, ins.width)
    elif space == "global":
        lines, sectors, partial = count_sectors(addresses, m, ins.width)
        name = {"LD": "LDG", "ST": "STG", "REDG": "RED", "ATOMG": "RED", "ATOM": "RED"}.get(ins.base, ins.base)
        ledger[f"{name} lines"] += lines
        ledger[f"{name} sectors"] += sectors
        if name != "LDG":
            ledger[f"{name} partial sectors"] += partial


@operation("LDG", "LDS", "LDL", "LD")
def load(ins: Instruction) -> Run:
    space, width, signed = space_of(ins), ins.width, bool(ins.modifiers & {"S8", "S16"})
    operands = [text for text in ins.operands if not is_predicate(text)]
    address = address_of(ins, operands[1])
    to = sinks_of(operands[0], words_of(width), ins)

    def run(w: Any, m: np.ndarray) -> None:
        memory, addresses = memory_and_address(w, space, address(w), m)
        offsets = memory.offsets(addresses, m, width, ins)
        note(w, memory, ins, offsets, addresses, m)
        for write, value in zip(to, memory.read(offsets, width, signed), strict=True):
            write(w, m, value)

    return run


@operation("STG", "STS", "STL", "ST")
def store(ins: Instruction) -> Run:
    space, width = space_of(ins), ins.width
    address = address_of(ins, ins.operands[0])
    values = registers_of(ins.operands[1], words_of(width), ins)

    def run(w: Any, m: np.ndarray) -> None:
        memory, addresses = memory_and_address(w, space, address(w), m)
        offsets = memory.offsets(addresses, m, width, ins)
        note(w, memory, ins, offsets, addresses, m)
        memory.write(offsets, m, width, [value(w) for value in values])

    return run


@operation("LDC", "ULDC")
def load_constant(ins: Instruction) -> Run:
    found = re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[(.*)\]", ins.operands[1])
    if found is None:
        raise UnknownInstruction(str(ins))
    bank, (base, offset) = int(found[1], 16), address_parts(found[2], ins)
    width, signed = ins.width, bool(ins.modifiers & {"S8", "S16"})
    to = sinks_of(ins.operands[0], words_of(width), ins)

    def run(w: Any, m: np.ndarray) -> None:
        at = base(w) + offset
        if np.ndim(at):
            at = np.where(m, at, 0)
        value = w.constants.load(bank, at, width, signed)
        to[0](w, m, value & np.uint64(0xFFFFFFFF) if width == 8 else value)
        if width == 8:
            to[1](w, m, value >> np.uint64(32))

    return run


def joined(ins: Instruction) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Return the dtype and function of an atomic operation on one element."""
    names = ins.modifiers
    if names & {"F32", "F32x4", "F32x2"}:
        dtype: Any = np.float32
    elif names & {"F64"}:
        dtype = np.float64
    elif names & {"F16x2", "BF16_V2", "F16", "BF16", "BF16x2"}:
        raise UnknownInstruction(str(ins))
    else:
        wide, signed = bool(names & {"64", "S64", "U64"}), bool(names & {"S32", "S64"})
        dtype = {(0, 0): np.uint32, (0, 1): np.int32, (1, 0): np.uint64, (1, 1): np.int64}[(int(wide), int(signed))]
    one = np.dtype(dtype).type(1)
    functions: dict[str, Callable[[Any, Any], Any]] = {
        "ADD": lambda a, b: a + b,
        "MIN": lambda a, b: min(a, b),
        "MAX": lambda a, b: max(a, b),
        "AND": lambda a, b: a & b,
        "OR": lambda a, b: a | b,
        "XOR": lambda a, b: a ^ b,
        "EXCH": lambda a, b: b,
        "INC": lambda a, b: a + one,  # POPC.INC: one more for every lane
    }
    name = next((name for name in functions if name in names), None)
    if name is None or (name == "INC" and "POPC" not in names):
        raise UnknownInstruction(str(ins))
    return dtype, functions[name]


@operation("RED", "REDG", "ATOMS", "ATOMG", "ATOM")
def atomic(ins: Instruction) -> Run:
    space, width = space_of(ins), ins.width
    operands = [text for text in ins.operands if not is_predicate(text)]
    returns = ins.base.startswith("ATOM")
    words = width // 4
    to = sinks_of(operands[0], words, ins) if returns else []
    address = address_of(ins, operands[1 if returns else 0])
    inputs = operands[2 if returns else 1 :]
    swap = "CAS" in ins.modifiers or "CAST" in ins.modifiers
    values = [value for text in inputs for value in registers_of(text, words, ins)]
    dtype, join = (np.uint32, lambda a, b: b) if swap else joined(ins)
    if not values:
        values = [lambda w: np.zeros(32, U32)] * words

    def run(w: Any, m: np.ndarray) -> None:
        memory, addresses = memory_and_address(w, space, address(w), m)
        offsets = memory.offsets(addresses, m, width, ins)
        note(w, memory, ins, offsets, addresses, m)
        given = np.stack([value(w) for value in values], 1)  # [32, words of all inputs]
        found = np.zeros((32, words), U32)
        for lane in np.flatnonzero(m):
            cell = memory.words[offsets[lane] // 4 : offsets[lane] // 4 + words]
            found[lane] = cell
            if swap:
                if (cell == given[lane, :words]).all():
                    cell[:] = given[lane, words:]
            else:
                elements, new = cell.view(dtype), given[lane].copy().view(dtype)
                for i in range(elements.size):
                    elements[i] = join(elements[i], new[i])
        for i, write in enumerate(to):
            write(w, m, found[:, i])

    return run


@operation("LDSM")
def load_matrices(ins: Instruction) -> Run:
    """Load 8 x 8 matrices of 16-bit numbers, PTX's ldmatrix; lanes 8i to 8i + 7 have the addresses of the rows."""
    if ins.modifiers - {"16", "M88", "MT88", "2", "4"}:
        raise UnknownInstruction(str(ins))
    count = next((int(name) for name in ("4", "2") if name in ins.modifiers), 1)
    transposed = "MT88" in ins.modifiers
    to, address = sinks_of(ins.operands[0], count, ins), address_of(ins, ins.operands[1])

    def run(w: Any, m: np.ndarray) -> None:
        memory, addresses = memory_and_address(w, "shared", address(w), m)
        rows = 8 * count > LANES
        offsets = memory.offsets(addresses, m & rows, 16, ins)
        w.block.ledger.memory["shared wavefronts"] += shared_wavefronts(offsets, m & rows, 16)
        halves = memory.words.view(np.uint16)
        for i, write in enumerate(to):
            matrix = halves[(offsets[8 * i : 8 * i + 8, None] >> 1) + np.arange(8)].astype(U32)
            matrix = matrix.T if transposed else matrix
            row, column = LANES >> 2, (LANES & 3) * 2
            write(w, m, matrix[row, column] | (matrix[row, column + 1] << U32(16)))

    return run
