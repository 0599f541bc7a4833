"""The machine code of the matching kernels: registers, loads in flight, instructions a pair, early starts.

No emulation shows what nvcc makes of a source, nor that one kernel starts before another ends. These tests read the
compiled CUDA library with cuobjdump, of CUDA's toolkit or of Triton. A change that makes a kernel longer exceeds a
ceiling here.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import dino_kernels
from benchmarks.sass.disassembly import MissingTool, cubins, find_tool, kernel_names

LIBRARY = Path(dino_kernels.__file__).parent / "_cuda.so"
COST = "matching_cost_kernel"
SMALL = "small_assignment_kernel"
ASSIGNMENTS = {  # name in the machine code: registers, so that two blocks of 512 threads fit, or one
    SMALL: 64,
    "assignment_kernelIfNS_12LowestSolver": 64,
    "assignment_kernelIdNS_12LowestSolver": 128,
    "assignment_kernelIdNS_11SciPySolver": 128,
}


class Instruction(NamedTuple):
    address: int
    guard: str  # the predicate without which it is skipped, or ""
    name: str  # with modifiers, such as LDG.E.64
    operands: str


class Function(NamedTuple):
    code: list[Instruction]
    registers: int
    loops: list[list[Instruction]]  # bodies, the branch back included


def dump(file: Path, *options: str) -> str:
    command = [str(find_tool("cuobjdump")), *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse_code(text: str) -> list[Instruction]:
    code = []
    for line in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", text, re.M):
        code.append(Instruction(int(line[1], 16), line[2] or "", line[3], line[4]))
    return code


def find_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """From the target of each branch back to the branch."""
    loops = []
    for instruction in code:
        target = re.search(r"0x([0-9a-f]+)$", instruction.operands)
        if instruction.name.startswith("BRA") and target and (start := int(target[1], 16)) < instruction.address:
            loops.append([other for other in code if start <= other.address <= instruction.address])
    return loops


@cache
def functions() -> dict[str, Function]:
    """The sm_90 code of every kernel of the library whose name is about matching."""
    found = {}
    for cubin in cubins(LIBRARY, 90):
        if not any("assignment_kernel" in name or COST in name for name in kernel_names(cubin)):
            continue
        usage = re.finditer(r"Function (\w+):\s+REG:(\d+)", dump(cubin, "-res-usage"))
        registers = {match[1]: int(match[2]) for match in usage}
        for part in dump(cubin, "-sass").split("Function : ")[1:]:
            name = part.split(maxsplit=1)[0]
            code = parse_code(part)
            found[name] = Function(code, registers[name], find_loops(code))
    return found


@pytest.fixture(autouse=True)
def machine_code() -> None:
    if not LIBRARY.is_file():
        pytest.skip("dino_kernels/_cuda.so has not been built")
    try:
        functions()
    except MissingTool as missing:
        pytest.skip(str(missing))
    except RuntimeError as error:
        if "no machine code" not in str(error):
            raise
        pytest.skip(str(error))


def function(name: str) -> Function:
    (found,) = (function for mangled, function in functions().items() if name in mangled)
    return found


def positions(code: list[Instruction], *prefixes: str) -> list[int]:
    return [i for i, instruction in enumerate(code) if instruction.name.startswith(prefixes)]


def registers_of(text: str) -> set[str]:
    return set(re.findall(r"\bR\d+", text))


def loads_before_first_use(code: list[Instruction], start: int) -> int:
    """How many loads from `start` on are issued before an instruction reads what one of them returns."""
    waiting: set[str] = set()
    loads = 0
    for instruction in code[start:]:
        target, _, sources = instruction.operands.partition(",")
        if registers_of(sources) & waiting:
            break
        if instruction.name.startswith("LDG"):
            waiting |= registers_of(target)
            loads += 1
    return loads


def test_there_is_one_cost_kernel_and_four_assignment_kernels():
    assert len([name for name in functions() if COST in name]) == 1
    assert len(functions()) == 1 + len(ASSIGNMENTS)


def test_registers_leave_room_for_the_blocks_that_the_readmes_count():
    assert function(COST).registers <= 64
    for name, most in ASSIGNMENTS.items():
        assert function(name).registers <= most, name


@pytest.mark.parametrize("name", [COST, *ASSIGNMENTS])
def test_loops_do_not_spill(name):
    """Local memory is there for the arguments of printf, outside loops; for many rows, for numbers of a row or step."""
    found = function(name)
    # A loop that spans the whole kernel is code which was moved behind its end.
    loops = [loop for loop in found.loops if not positions(loop, "EXIT")]
    spilled = {loop[i].address for loop in loops for i in positions(loop, "LDL", "STL")}
    assert len(spilled) <= SPILLED.get(name, 0), [hex(address) for address in sorted(spilled)]


SPILLED = {"assignment_kernelIfNS_12LowestSolver": 8}


def class_loop() -> list[Instruction]:
    """The loop of focal costs with gamma = 2: an exponential, a reciprocal and two logarithms a pair, and no call."""
    loops = [loop for loop in function(COST).loops if len(positions(loop, "MUFU")) == 16]
    (loop,) = (loop for loop in loops if not positions(loop, "CALL"))
    return loop


def pair_loops() -> list[list[Instruction]]:
    """The loops over targets with boxes: two reciprocals a pair; without and with an extra cost."""
    loops = [loop for loop in function(COST).loops if len(positions(loop, "MUFU.RCP")) == 2 and positions(loop, "STG")]
    loops = [loop for loop in loops if not positions(loop, "BAR")]
    assert len(loops) == 2
    return sorted(loops, key=len)


def test_four_logits_are_in_flight():
    loop = class_loop()
    groups = [loads_before_first_use(loop, i) for i in positions(loop, "LDG.E.CONSTANT")]
    assert max(groups) == 4


def test_a_pair_takes_few_instructions():
    """Of the loop's code a pair executes all but the call for extreme boxes; a class cost one of four types' loads."""
    pair = pair_loops()[0]
    (call,) = positions(pair, "CALL")
    prepare = next(i for i in range(call, 0, -1) if pair[i].name.startswith("BRA"))
    executed = len(pair) - (call + 2 - prepare - 1)
    assert executed <= PAIR_CEILING
    assert not positions(pair, "MUFU.RSQ", "FCHK"), "divisions are reciprocals"


PAIR_CEILING, CLASS_CEILING = 62, 57


def test_a_class_cost_takes_few_instructions():
    """Of float32 logits: the first branch of the loop jumps to their loads, the last one over what NaN needs."""
    loop = class_loop()
    branches = [i for i in positions(loop, "BRA")[:-1] if loop[i].guard]
    skipped = 0
    for i in (branches[0], branches[-1]):
        target = int(loop[i].operands.split("0x")[-1], 16)
        skipped += sum(loop[i].address < instruction.address < target for instruction in loop)
    assert len(loop) - skipped <= 4 * CLASS_CEILING


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_an_assignment_reads_and_writes_nothing_of_the_costs_before_it_waits(name):
    """Before griddepcontrol.wait (ACQBULK) come the loads of offsets or sizes, which the cost kernel does not write.

    Code that the listing has before the wait and that runs after it would need a jump back: there is none.
    """
    code = function(name).code
    (wait,) = positions(code, "ACQBULK")
    assert len(positions(code[:wait], "LDG")) <= 4
    assert not positions(code[:wait], "STG", "RED.", "ATOM", "BAR")
    assert all(code[i].name == "LDG.E.64" for i in positions(code[:wait], "LDG"))
    jumps = [code[i] for i in positions(code[:wait], "BRA")]
    assert all(int(jump.operands.split("0x")[-1], 16) <= code[wait].address for jump in jumps)
    assert not positions(code[:wait], "EXIT", "RET")


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_costs_are_not_read_through_the_cache_for_constants(name):
    """They are written while the kernel is on the device already."""
    assert not [i for i in function(name).code if i.name.startswith("LDG") and "CONSTANT" in i.name]


def test_the_costs_let_the_assignment_start_before_they_read_anything():
    code = function(COST).code
    (trigger,) = positions(code, "PREEXIT")
    assert not positions(code[:trigger], "LDG", "STG", "BAR", "EXIT")


def test_one_warp_solves_without_a_barrier_of_the_block():
    """After the other warps have left, there is a vote, a reduction or a shuffle in place of each barrier."""
    code = function(SMALL).code
    last_barrier = positions(code, "BAR.RED", "BAR.SYNC")[-1]
    exits = [i for i in positions(code, "EXIT") if i > last_barrier]
    assert exits and code[exits[0]].guard
    assert positions(code[exits[0] :], "SHFL") and positions(code[exits[0] :], "REDUX")
    assert not positions(code[exits[0] :], "BAR.")


def test_eight_costs_of_a_dense_row_are_in_flight():
    """A whole round: one address, eight loads, and the fewest instructions of all loops with as many loads."""
    loops = [loop for loop in function(SMALL).loops if len(positions(loop, "LDG")) == 8]
    loop = min(loops, key=len)
    assert loads_before_first_use(loop, 0) == 8
    assert len(loop) <= 90
