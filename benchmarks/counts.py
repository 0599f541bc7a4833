"""What the compiled kernels do, counted without a GPU: their machine code is executed on the CPU.

    python -m benchmarks.counts                       the hot kernels of dino_kernels/_cuda.so
    python -m benchmarks.counts --kernel 'tile.*bf16' only those whose label or name has a match
    python -m benchmarks.counts --library X.cubin     of a library, an object file or nvcc -cubin's output
    python -m benchmarks.counts --profile             the machine code with how often each instruction ran
    python -m benchmarks.counts --update              store them in benchmarks/results/counts.json

Blocks of an 800x1333 image run on random samples (offsets of the initial rays + N(0, 2 px)), so a count includes what
depends on the data: warps that diverge, hash probes, corners outside. An item is one (query, head). The floor is the
time that issuing the instructions alone takes, four a cycle and multiprocessor.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.sass import attention, checks
from benchmarks.sass.disassembly import Kernel, MissingTool, compiler, cubins, demangle, kernel_names, read_kernels
from benchmarks.sass.kinds import by_kind
from benchmarks.sass.memory import Ledger
from benchmarks.sass.occupancy import LIMITS, blocks_per_multiprocessor

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "dino_kernels" / "_cuda.so"
STORED = ROOT / "benchmarks" / "results" / "counts.json"
TOGETHER = 8  # items
BLOCKS = 3  # of a kernel, evenly spaced over one head's


@dataclass
class Counted:
    """One kernel's counts; all of `kinds` and `memory` are per 8 items."""

    label: str
    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int  # that were touched, static and dynamic
    threads: int
    blocks_per_multiprocessor: int
    workload: str
    instructions: float
    items: int  # of the workload
    kinds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    def occupancy(self, arch: int) -> float:
        return self.blocks_per_multiprocessor * self.threads / LIMITS[arch].threads

    def floor_us(self, clock_ghz: float, multiprocessors: int) -> float:
        """Of the whole workload, by issued instructions."""
        return self.instructions * self.items / TOGETHER / (4e3 * clock_ghz * multiprocessors)

    def shared_us(self, clock_ghz: float, multiprocessors: int) -> float:
        """Of the whole workload, by wavefronts of shared memory, one a cycle."""
        return self.memory.get("shared wavefronts", 0) * self.items / TOGETHER / (1e3 * clock_ghz * multiprocessors)


def label_of(name: str) -> str | None:
    """ "forward large bf16 fused" and the like; None where `attention.FAMILIES` does not have the kernel."""
    found = attention.match_family(name)
    if found is None:
        return None
    family, groups = found
    lanes = [int(groups[key]) for key in family.lanes]
    size = (
        "tile" if groups.get("tiles") == "true" else "general" if 0 in lanes else "small" if lanes[-1] > 1 else "large"
    )
    return f"{family.name} {size} {attention.TYPES[groups['T']]} {'fused' if groups['fused'] == 'true' else 'classic'}"


def is_hot(label: str) -> bool:
    return "general" not in label and "fp64" not in label


def count(kernel: Kernel, name: str, label: str, blocks: int = BLOCKS) -> tuple[Counted, Ledger]:
    """Executes some blocks of a kernel."""
    case = attention.DECODER if "small" in label else attention.ENCODER
    launch = attention.prepare(kernel, name, case)
    total, heads = Ledger(), case.batch * case.heads
    a_head = launch.blocks // heads
    for i in range(blocks):
        total.add(launch.run(i % heads * a_head + (2 * i + 1) * a_head // (2 * blocks)))
    unit = TOGETHER / (launch.items * blocks)
    shared = max(launch.shared_touched - 1024, kernel.static_shared)
    counted = Counted(
        label,
        name,
        kernel.registers,
        kernel.stack,
        shared,
        kernel.max_threads,
        blocks_per_multiprocessor(kernel.arch, kernel.registers, kernel.max_threads, shared),
        case.name,
        round(total.at.total() * unit, 1),
        case.batch * case.heads * (case.queries or case.rows),
        {kind: round(n * unit, 1) for kind, n in by_kind(kernel.instructions, total.at).most_common()},
        {what: round(n * unit, 1) for what, n in sorted(total.memory.items())},
    )
    return counted, total


def hot_kernels(library: Path, arch: int, pattern: str = "") -> list[tuple[Kernel, str, str]]:
    """(kernel, demangled name, label), by label."""
    found = []
    for cubin in cubins(library, arch):
        names = demangle(kernel_names(cubin))
        wanted = {}
        for mangled, name in names.items():
            label = label_of(name)
            if label and (re.search(pattern, f"{label}\n{name}") if pattern else is_hot(label)):
                wanted[mangled] = (name, label)
        if wanted:
            exact = "|".join(rf"^{re.escape(mangled)}$" for mangled in wanted)
            found += [(kernel, *wanted[kernel.name]) for kernel in read_kernels(cubin, arch, exact)]
    return sorted(found, key=lambda entry: entry[2])


def row(counted: Counted, arch: int, clock: float, multiprocessors: int) -> list[str]:
    memory = counted.memory
    red = f"{memory['RED sectors']:.0f} ({memory['RED partial sectors']:.0f})" if "RED sectors" in memory else "-"
    return [
        counted.label,
        counted.workload,
        f"{counted.registers}",
        f"{counted.stack_bytes}",
        f"{counted.shared_bytes / 1024:.1f}",
        f"{counted.threads} x {counted.blocks_per_multiprocessor}",
        f"{100 * counted.occupancy(arch):.0f} %",
        f"{counted.instructions:.0f}",
        f"{counted.floor_us(clock, multiprocessors):.0f}",
        f"{memory.get('shared wavefronts', 0):.0f}",
        f"{memory.get('LDG sectors', 0):.0f}",
        red,
    ]


HEADER = [
    *("kernel", "workload", "registers", "stack B", "shared KiB", "threads x blocks", "occupancy"),
    *("instructions", "floor us", "shared wavefronts", "LDG sectors", "RED sectors (partial)"),
]


def table(document: dict[str, Any]) -> list[list[str]]:
    """The stored counts, for benchmarks/report.py."""
    counted = [Counted(**entry) for entry in document["kernels"]]
    return [HEADER, *(row(c, document["arch"], document["clock_ghz"], document["multiprocessors"]) for c in counted)]


def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text())


def as_document(counts: Sequence[Counted], arch: int, clock: float, multiprocessors: int, built: str) -> dict[str, Any]:
    return {
        "arch": arch,
        "compiler": built,
        "clock_ghz": clock,
        "multiprocessors": multiprocessors,
        "kernels": [vars(c) for c in counts],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--library", type=Path, default=LIBRARY, help="_cuda.so, an object file or a .cubin")
    parser.add_argument("--arch", type=int, choices=sorted(LIMITS), default=90)
    parser.add_argument("--kernel", default="", metavar="REGEX", help="which ones; default: the hot ones")
    parser.add_argument("--clock", type=float, default=1.755, help="GHz")
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="how many of a kernel to execute")
    parser.add_argument("--profile", action="store_true", help="print the code with the counts of each instruction")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--update", action="store_true", help=f"write {STORED.relative_to(ROOT)}")
    options = parser.parse_args()
    try:
        kernels = hot_kernels(options.library, options.arch, options.kernel)
    except (MissingTool, FileNotFoundError) as problem:
        print(f"counts: {problem}", file=sys.stderr)
        return 1
    if not kernels:
        print(f"counts: {options.library} has no kernel that matches {options.kernel!r}", file=sys.stderr)
        return 1
    counts = []
    for kernel, name, label in kernels:
        counted, total = count(kernel, name, label, options.blocks)
        counts.append(counted)
        if options.json:
            continue
        print("\n".join(describe(counted, kernel, options.arch, options.clock, options.sms)))
        if options.profile:
            for ins in kernel.instructions:
                if ins.address in total.at:
                    print(f"{total.at[ins.address]:8d}  {ins}")
        print(flush=True)
    document = as_document(counts, options.arch, options.clock, options.sms, compiler(options.library, options.arch))
    if options.json:
        print(json.dumps(document, indent=1))
    if options.update:
        STORED.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def describe(counted: Counted, kernel: Kernel, arch: int, clock: float, multiprocessors: int) -> list[str]:
    """What is printed of one kernel."""
    lines = [f"{counted.label}: {counted.name}"]
    lines.append(
        "  "
        + ", ".join(
            f"{title} {cell}"
            for title, cell in list(zip(HEADER, row(counted, arch, clock, multiprocessors), strict=True))[1:7]
        )
    )
    lines.append(
        f"  per {TOGETHER} items: {counted.instructions:.0f} instructions, floor "
        f"{counted.floor_us(clock, multiprocessors):.1f} us (shared memory {counted.shared_us(clock, multiprocessors):.1f} us) "
        f"for all {counted.items} items"
    )
    lines.append("  " + ", ".join(f"{kind} {n:.0f}" for kind, n in counted.kinds.items()))
    lines.append("  " + ", ".join(f"{what} {n:.0f}" for what, n in counted.memory.items()))
    for title, found in (
        ("local memory in loops", checks.local_memory_in_loops(kernel)),
        ("byte loads of shared memory", checks.byte_loads_of_shared(kernel)),
        ("generic accesses", checks.generic_accesses(kernel)),
        ("float64 arithmetic", checks.doubles(kernel)),
        ("reductions of less than 16 bytes", checks.narrow_reductions(kernel)),
        ("reductions that flush subnormal numbers", checks.flushing_reductions(kernel)),
    ):
        if found:
            lines.append(f"  {title}: {len(found)}, such as {found[0]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
