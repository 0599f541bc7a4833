"""Compiled Triton kernels: instructions of a warp, and the addresses that its lanes use together."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def warp_instructions(compiled: dict[str, Any], trips: int, folder: Path) -> Counter[str]:
    """Machine instructions that a warp executes, by name, where each loop goes round `trips` times."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    if not tool.exists():
        pytest.skip("this Triton comes without nvdisasm")
    (folder / "kernel.cubin").write_bytes(compiled["cubin"])
    listing = subprocess.check_output([tool, "-c", folder / "kernel.cubin"], text=True)
    instructions, labels = [], {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(code[1])
    times = [1] * len(instructions)
    for at, code in enumerate(instructions):
        jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", code)
        if jump and labels[jump[1]] < at:
            for inside in range(labels[jump[1]], at + 1):
                times[inside] *= trips
    executed: Counter[str] = Counter()
    for code, count in zip(instructions, times, strict=True):
        name = re.sub(r"^\{?\s*(@!?U?P\w+\s+)?", "", code).split()[0].split(".")[0]
        if name != "NOP":
            executed[name] += count
    return executed


_BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
}


def lane_offsets(ptx: str, address: str, lanes: int = 32) -> list[int]:
    """Return by how many bytes a register's address differs between each lane and lane 0, for the same row.

    Loaded and shuffled numbers count as 0: they choose the row, which is the same in all lanes that share one.
    """
    sources: dict[str, tuple[str, list[str]]] = {}
    for line in ptx.splitlines():
        made = re.match(r"\s*([a-z][\w.:]*)\s+(%\w+),\s*(.*);", line)
        if made:
            sources.setdefault(made[2], (made[1], [part.strip() for part in made[3].split(",")]))

    def value(name: str, lane: int, known: dict[str, int]) -> int:
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", name):
            return int(name, 0)
        if name == "%tid.x":
            return lane
        if name not in known:
            known[name] = 0  # of a loop's own counter
            kind, parts = sources.get(name, ("", []))
            operation = kind.split(".")[0]
            if operation in ("mov", "cvt", "cvta"):
                known[name] = value(parts[0], lane, known)
            elif operation in _BINARY:
                known[name] = _BINARY[operation](*(value(part, lane, known) for part in parts))
            elif operation == "mad":
                first, second, third = (value(part, lane, known) for part in parts)
                known[name] = first * second + third
            elif operation == "bfe":
                first, start, length = (value(part, lane, known) for part in parts)
                known[name] = first >> start & (1 << length) - 1
        return known[name]

    addresses = [value(address, lane, {}) for lane in range(lanes)]
    return [each - addresses[0] for each in addresses]
