"""Parse one instruction of a disassembly and the values that its operands name.

The same functions serve a warp's 32 lanes (numpy arrays) and its uniform registers (numpy scalars). Everything is kept
as uint32; signs, halves and floats are views.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Value = Any  # np.ndarray of 32 lanes, or a numpy scalar
Source = Callable[[Any], Value]
Sink = Callable[[Any, np.ndarray, Value], None]

ADDRESS_BYTES = 16  # of one instruction
NUMBER = re.compile(r"[-+]?(0x[0-9a-f]+|\d+(\.\d*)?(e[-+]?\d+)?|INF|QNAN|SNAN)", re.IGNORECASE)
REGISTER = re.compile(r"(U?R)(\d+|Z)$")
PREDICATE = re.compile(r"(!?)(U?P)(\d|T)$")


class UnknownInstruction(RuntimeError):
    """Machine code that this package cannot execute."""


@dataclass(eq=False)
class Instruction:
    """`operands` as text; `target` is the address of a branch."""

    address: int
    opcode: str
    operands: list[str]
    predicate: str = ""
    target: int | None = None
    base: str = ""
    modifiers: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        parts = self.opcode.split(".")
        self.base, self.modifiers = parts[0], frozenset(parts[1:])

    def __str__(self) -> str:
        guard = f"{self.predicate} " if self.predicate else ""
        return f"{self.address:#06x}: {guard}{self.opcode} {', '.join(self.operands)}"

    @property
    def width(self) -> int:
        """Return the bytes that a lane of a memory instruction moves."""
        for name, size in (("128", 16), ("64", 8), ("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2)):
            if name in self.modifiers:
                return size
        if "F32x4" in self.modifiers:
            return 16
        if self.modifiers & {"F32x2", "S64", "U64", "BF16x4", "F16x4"}:
            return 8
        return 4


def split_operands(text: str) -> list[str]:
    """Split the operands of a line; drop hints to the hardware that have no meaning here."""
    text = text.replace(".reuse", "")
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    # nvdisasm's JSON has R6[R2] for R6, [R2].
    apart = [re.sub(r"^(U?R(?:\d+|Z))\[", r"\1\n[", part.strip()).split("\n") for part in parts if part.strip()]
    return [part for both in apart for part in both]


def is_predicate(text: str) -> bool:
    return PREDICATE.match(text) is not None


def register(text: str) -> tuple[str, int] | None:
    """Return "R" or "UR" and the number, -1 for the register that is always zero."""
    found = REGISTER.match(text)
    return None if found is None else (found[1], -1 if found[2] == "Z" else int(found[2]))


def sign_of(text: str) -> tuple[bool, bool, bool, str]:
    """Return whether an operand is negated, complemented, absolute; and the rest of it."""
    negative = complement = absolute = False
    while text[:1] in ("-", "~") and not NUMBER.match(text):
        negative, complement = negative ^ (text[0] == "-"), complement ^ (text[0] == "~")
        text = text[1:]
    if text.startswith("|"):
        absolute, text = True, text[1:].rstrip("|")
    return negative, complement, absolute, text


def _raw(text: str, ins: Instruction) -> Source:
    """Read the 32 bits of a register or constant."""
    found = register(text)
    if found:
        kind, number = found
        if number < 0:
            zero = np.uint32(0)
            return lambda w: zero
        return (lambda w: w.R[number]) if kind == "R" else (lambda w: w.UR[number])
    constant = re.match(r"c\[(0x[0-9a-f]+)\]\[(.*)\]$", text)
    if constant:
        bank, at = int(constant[1], 16), constant[2]
        base, offset = address_parts(at, ins)
        return lambda w: w.constants.load(bank, base(w) + offset, 4, False)
    raise UnknownInstruction(f"operand {text!r} of {ins}")


def address_parts(text: str, ins: Instruction) -> tuple[Source, int]:
    """Split R4.64+UR6+0x10 into the sum of its registers as int64, and the constant."""
    sources: list[Source] = []
    offset = 0
    for part in text.replace("+-", "+ -").split("+"):
        part = part.strip()
        if re.fullmatch(r"-?0x[0-9a-f]+", part):
            offset += int(part, 16)
            continue
        name, _, suffix = part.partition(".")
        found = register(name)
        if found is None or suffix not in ("", "64", "U32", "X4", "X8", "X16"):
            raise UnknownInstruction(f"address {text!r} of {ins}")
        if suffix.startswith("X"):
            one, scale = integer64(name, ins, pair=False), int(suffix[1:])
            sources.append(lambda w, one=one, scale=scale: one(w) * np.uint64(scale))
        else:
            sources.append(integer64(name, ins, pair=suffix == "64"))
    if not sources:
        return (lambda w: np.int64(0)), offset
    if len(sources) == 1:
        only = sources[0]
        return (lambda w: only(w).astype(np.int64)), offset
    return (lambda w: sum(s(w).astype(np.int64) for s in sources)), offset


def integer(text: str, ins: Instruction) -> Source:
    """Read an operand of an integer instruction as uint32."""
    if NUMBER.fullmatch(text):
        number = np.uint32(int(text, 0) & 0xFFFFFFFF)
        return lambda w: number
    negative, complement, absolute, rest = sign_of(text)
    raw = _raw(rest, ins)
    if absolute:
        raise UnknownInstruction(f"operand {text!r} of {ins}")
    if negative:
        return lambda w: ~raw(w) + np.uint32(1)
    return (lambda w: ~raw(w)) if complement else raw


def addend(text: str, ins: Instruction) -> Source:
    """Read an operand of an addition with carry as uint64: -x is ~x + 1, which carries for 0."""
    negative, _, _, rest = sign_of(text)
    if negative and not NUMBER.fullmatch(text):
        raw = _raw(rest, ins)
        return lambda w: (~raw(w)).astype(np.uint64) + np.uint64(1)
    plain = integer(text, ins)
    return lambda w: plain(w).astype(np.uint64)


def integer64(text: str, ins: Instruction, pair: bool = True) -> Source:
    """Read a pair of registers as uint64, or one register widened."""
    if NUMBER.fullmatch(text):
        number = np.uint64(int(text, 0) & 0xFFFFFFFFFFFFFFFF)
        return lambda w: number
    negative, complement, _, rest = sign_of(text)
    found = register(rest)
    if found is None:
        constant = re.match(r"c\[(0x[0-9a-f]+)\]\[(0x[0-9a-f]+)\]$", rest)
        if constant is None:
            raise UnknownInstruction(f"operand {text!r} of {ins}")
        bank, offset = int(constant[1], 16), int(constant[2], 16)
        load: Source = lambda w: w.constants.load(bank, np.int64(offset), 8, False)  # noqa: E731
    else:
        kind, number = found
        if number < 0:
            zero = np.uint64(0)
            load = lambda w: zero  # noqa: E731
        else:

            def read(w: Any) -> Value:
                registers = w.R if kind == "R" else w.UR
                low = registers[number].astype(np.uint64)
                return low | (registers[number + 1].astype(np.uint64) << np.uint64(32)) if pair else low

            load = read
    if negative:
        return lambda w: ~load(w) + np.uint64(1)
    return (lambda w: ~load(w)) if complement else load


def float32(text: str, ins: Instruction) -> Source:
    return _float(text, ins, _raw, np.float32, np.uint32)


def float64(text: str, ins: Instruction) -> Source:
    return _float(text, ins, integer64, np.float64, np.uint64)


def _float(text: str, ins: Instruction, read: Callable[[str, Instruction], Source], dtype: Any, bits: Any) -> Source:
    if NUMBER.fullmatch(text.strip()):
        number = "nan" if "NAN" in text else int(text, 16) if "0x" in text else text
        constant = dtype(number)
        return lambda w: constant
    negative, _, absolute, rest = sign_of(text)
    raw = read(rest, ins)
    if not (negative or absolute):
        return lambda w: raw(w).view(dtype)
    sign = bits(1 << (8 * bits().itemsize - 1))
    clear, flip = ~sign if absolute else ~bits(0), sign if negative else bits(0)
    return lambda w: ((raw(w) & clear) ^ flip).view(dtype)


def predicate(text: str, ins: Instruction) -> Source:
    found = PREDICATE.match(text)
    if found is None:
        raise UnknownInstruction(f"predicate {text!r} of {ins}")
    negated, kind, name = bool(found[1]), found[2], found[3]
    if name == "T":
        constant = np.bool_(not negated)
        return lambda w: constant
    number = int(name)
    if kind == "P":
        return (lambda w: ~w.P[number]) if negated else (lambda w: w.P[number])
    return (lambda w: ~w.UP[number]) if negated else (lambda w: w.UP[number])


def sink(text: str, ins: Instruction) -> Sink:
    """Write the low 32 bits of a value to a register, or a truth value to a predicate, for the given lanes."""
    if text in ("RZ", "URZ", "PT", "UPT"):
        return lambda w, m, v: None
    found = register(text)
    if found:
        kind, number = found
        if kind == "R":
            return lambda w, m, v: np.copyto(w.R[number], v, where=m, casting="unsafe")

        def write_uniform(w: Any, m: np.ndarray, v: Value) -> None:
            w.UR[number] = np.asarray(v).astype(np.uint32)

        return write_uniform
    found = PREDICATE.match(text)
    if found is None or found[1]:
        raise UnknownInstruction(f"destination {text!r} of {ins}")
    number = int(found[3])
    if found[2] == "P":
        return lambda w, m, v: np.copyto(w.P[number], v, where=m, casting="unsafe")

    def write_uniform_predicate(w: Any, m: np.ndarray, v: Value) -> None:
        w.UP[number] = v

    return write_uniform_predicate


def sink64(text: str, ins: Instruction) -> Sink:
    """Write a uint64 or float64 to a pair of registers."""
    if text in ("RZ", "URZ"):
        return lambda w, m, v: None
    found = register(text)
    if found is None:
        raise UnknownInstruction(f"destination {text!r} of {ins}")
    kind, number = found
    low, high = sink(f"{kind}{number}", ins), sink(f"{kind}{number + 1}", ins)

    def write(w: Any, m: np.ndarray, v: Value) -> None:
        bits = v.view(np.uint64) if v.dtype == np.float64 else v.astype(np.uint64)
        low(w, m, bits & np.uint64(0xFFFFFFFF))
        high(w, m, bits >> np.uint64(32))

    return write
