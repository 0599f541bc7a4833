"""Count what the compiled kernels do, without a GPU: execute their machine code on the CPU.

    python -m benchmarks.sass.counts                       the hot kernels of dino_kernels/_cuda.so
    python -m benchmarks.sass.counts --kernel 'tile.*bf16' only those whose label or name matches
    python -m benchmarks.sass.counts --library X.cubin     of a library, an object file or nvcc -cubin's output
    python -m benchmarks.sass.counts --profile             the machine code with how often each instruction ran
    python -m benchmarks.sass.counts --update              store them in benchmarks/results/counts.json

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

from benchmarks.measure.machine import ROOT
from benchmarks.sass import attention, checks, matching
from benchmarks.sass.disassembly import Kernel, MissingTool, compiler, cubins, demangle, kernel_names, read_kernels
from benchmarks.sass.kinds import by_kind
from benchmarks.sass.memory import Ledger
from benchmarks.sass.occupancy import LIMITS, blocks_per_multiprocessor

LIBRARY = ROOT / "dino_kernels" / "_cuda.so"
STORED = ROOT / "benchmarks" / "results" / "counts.json"
FINDINGS = {
    "local memory in loops": checks.local_memory_in_loops,
    "byte loads of shared memory": checks.byte_loads_of_shared,
    "generic accesses": checks.generic_accesses,
    "float64 arithmetic": checks.doubles,
    "reductions of less than 16 bytes": checks.narrow_reductions,
    "reductions that flush subnormal numbers": checks.flushing_reductions,
}
UPDATE = "to store an intended change: python -m benchmarks.sass.counts --update"
BLOCKS = 3  # of a kernel, evenly spaced over one head's


@dataclass
class Counted:
    """One kernel's counts; `instructions`, `kinds` and `memory` are those of one unit of work, which `per` names."""

    label: str
    name: str
    workload: str
    per: str
    units: float  # of the workload
    registers: int
    stack_bytes: int
    shared_bytes: int  # touched, static and dynamic
    threads: int
    blocks_per_multiprocessor: int
    instructions: float
    of_one_block: float  # instructions of the first block alone, which tests/cuda/test_machine_code.py executes again
    kinds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)  # of FINDINGS

    def occupancy(self, arch: int) -> float:
        return self.blocks_per_multiprocessor * self.threads / LIMITS[arch].threads

    def floor_us(self, clock_ghz: float, multiprocessors: int) -> float:
        """Return the time of the whole workload by issued instructions."""
        return self.instructions * self.units / (4e3 * clock_ghz * multiprocessors)

    def shared_us(self, clock_ghz: float, multiprocessors: int) -> float:
        """Return the time of the whole workload by wavefronts of shared memory, one a cycle."""
        return self.memory.get("shared wavefronts", 0) * self.units / (1e3 * clock_ghz * multiprocessors)

    def lookup_us(self, clock_ghz: float, multiprocessors: int) -> float:
        """Return the time of the whole workload by lookups of lines in the first-level cache, one a cycle."""
        return self.memory.get("LDG lines", 0) * self.units / (1e3 * clock_ghz * multiprocessors)


def label_of(name: str) -> str | None:
    """Label a demangled name; None for kernels that are not counted."""
    return attention.label_of(name) or matching.label_of(name)


def is_hot(label: str) -> bool:
    return not any(word in label for word in ("general", "fp64", "SciPy", "K<=", "mask", "fixed point"))


def count(kernel: Kernel, name: str, label: str, blocks: int = BLOCKS) -> tuple[Counted, Ledger]:
    """Execute some blocks of a kernel."""
    launch = (attention if attention.label_of(name) else matching).launch(kernel, name, label, blocks)
    total = Ledger()
    ledgers = [launch.run(index) for index in launch.chosen]
    for ledger in ledgers:
        total.add(ledger)
    launch.check(len(launch.chosen))
    unit = 1 / (launch.units_of_block * len(launch.chosen))
    shared = max(launch.shared_touched, kernel.static_shared)
    counted = Counted(
        label,
        name,
        launch.workload,
        launch.per,
        launch.units,
        kernel.registers,
        kernel.stack,
        shared,
        launch.threads,
        blocks_per_multiprocessor(kernel.arch, kernel.registers, launch.threads, shared),
        round(total.at.total() * unit, 1),
        round(ledgers[0].at.total() / launch.units_of_block, 1),
        {kind: round(n * unit, 1) for kind, n in by_kind(kernel.instructions, total.at).most_common()},
        {what: round(n * unit, 1) for what, n in sorted(total.memory.items())},
        {title: len(find(kernel)) for title, find in FINDINGS.items()},
    )
    return counted, total


def hot_kernels(library: Path, arch: int, pattern: str = "") -> list[tuple[Kernel, str, str]]:
    """Return kernels, demangled names and labels, sorted by label."""
    found = []
    for cubin in cubins(library, arch):
        names = demangle(kernel_names(cubin))
        selected = {}
        for mangled, name in names.items():
            label = label_of(name)
            if label and (re.search(pattern, f"{label}\n{name}") if pattern else is_hot(label)):
                selected[mangled] = (name, label)
        if selected:
            exact = "|".join(rf"^{re.escape(mangled)}$" for mangled in selected)
            found += [(kernel, *selected[kernel.name]) for kernel in read_kernels(cubin, arch, exact)]
    labels = [label for _, _, label in found]
    for i, (kernel, name, label) in enumerate(found):
        if labels.count(label) > 1:  # several kernels for one purpose: add their template parameters
            found[i] = (kernel, name, f"{label} {name[name.index('<') : name.rindex('(')]}")
    return sorted(found, key=lambda entry: entry[2])


def row(counted: Counted, arch: int, clock: float, multiprocessors: int) -> list[str]:
    memory = counted.memory
    red = f"{memory['RED sectors']:.0f} ({memory['RED partial sectors']:.0f})" if "RED sectors" in memory else "-"
    return [
        counted.label,
        counted.workload,
        counted.per,
        f"{counted.registers}",
        f"{counted.stack_bytes}",
        f"{counted.shared_bytes / 1024:.1f}",
        f"{counted.threads} x {counted.blocks_per_multiprocessor}",
        f"{100 * counted.occupancy(arch):.0f} %",
        f"{counted.instructions:.0f}",
        f"{counted.floor_us(clock, multiprocessors):.0f}",
        f"{counted.lookup_us(clock, multiprocessors):.0f}",
        f"{memory.get('shared wavefronts', 0):.0f}",
        f"{memory.get('LDG sectors', 0):.0f}",
        red,
    ]


HEADER = [
    *("kernel", "workload", "per", "registers", "stack B", "shared KiB", "threads x blocks", "occupancy"),
    *("instructions", "floor us", "lookups us", "shared wavefronts", "LDG sectors", "RED sectors (partial)"),
]


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make the table of the stored counts, for benchmarks/measure/report.py."""
    counted = [Counted(**entry) for entry in document["kernels"]]
    return [HEADER, *(row(c, document["arch"], document["clock_ghz"], document["multiprocessors"]) for c in counted)]


def caption(document: dict[str, Any]) -> str:
    """Make the line below the table in a README."""
    return (
        f"Counted, not measured: `python -m benchmarks.sass.counts` executes the sm_{document['arch']} machine code of "
        f"ptxas {document['compiler']} on a CPU. Floor: all instructions of the workload issued at four a cycle by "
        f"{document['multiprocessors']} multiprocessors at {document['clock_ghz']} GHz. Lookups: all lines that its "
        "loads touch in the first-level caches, one a cycle and multiprocessor."
    )


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
    if options.update and (
        options.kernel or options.library != LIBRARY or options.arch != 90 or options.blocks != BLOCKS
    ):
        parser.error("--update stores all hot kernels of the built library. Remove the options that select others.")
    try:
        kernels = hot_kernels(options.library, options.arch, options.kernel)
    except (MissingTool, FileNotFoundError) as problem:
        print(f"counts: {problem}", file=sys.stderr)
        return 1
    if not kernels:
        print(f"counts: {options.library} has no kernel that matches {options.kernel!r}", file=sys.stderr)
        return 1
    counts, failed = [], False
    for kernel, name, label in kernels:
        try:
            counted, total = count(kernel, name, label, options.blocks)
        except (RuntimeError, ValueError) as problem:  # an unknown instruction, a launch that does not fit
            print(f"counts: {label}: {problem}", file=sys.stderr)
            failed = True
            continue
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
    if options.update and not failed:
        STORED.write_text(json.dumps(document, indent=1) + "\n")
    return int(failed)


def describe(counted: Counted, kernel: Kernel, arch: int, clock: float, multiprocessors: int) -> list[str]:
    """Make the lines printed for one kernel."""
    cells = list(zip(HEADER, row(counted, arch, clock, multiprocessors), strict=True))[1:8]
    lines = [f"{counted.label}: {counted.name}", "  " + ", ".join(f"{title} {cell}" for title, cell in cells)]
    issue, shared = counted.floor_us(clock, multiprocessors), counted.shared_us(clock, multiprocessors)
    lines.append(
        f"  per {counted.per}: {counted.instructions:.0f} instructions, floor {issue:.1f} us "
        f"(shared memory {shared:.1f} us) for all {counted.units:.0f}"
    )
    lines.append("  " + ", ".join(f"{kind} {n:.0f}" for kind, n in counted.kinds.items()))
    lines.append("  " + ", ".join(f"{what} {n:.0f}" for what, n in counted.memory.items()))
    for title, find in FINDINGS.items():
        found = find(kernel)
        if found:
            lines.append(f"  {title}: {len(found)}, such as {found[0]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
