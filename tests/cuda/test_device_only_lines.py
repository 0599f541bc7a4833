"""Lines of csrc/ that no emulation sees: all of them are listed in emulation/README.md, with what shows them right.

The PTX and machine code of each is read here, from a kernel of device_only_lines.cu.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cuda.emulation.build import KERNELS
from tests.cuda.machine_code import CSRC, machine_code_of, missing_tools, ptx_of

TESTS = Path(__file__).resolve().parent
LIST = TESTS / "emulation" / "README.md"


class Region(NamedTuple):
    """Consecutive lines that only nvcc compiles."""

    file: str  # in csrc/
    first: str  # line of code, without its comment
    lines: int  # of code: neither blank nor a comment


# Macros that the emulation leaves undefined. All others may be defined or not.
_OF_NVCC = re.compile(r"\b(__CUDA\w*|__NVCC__|CUDART_VERSION)\b")


def holds_in_emulation(condition: str) -> bool | None:
    """Whether a preprocessor condition holds there; None where it has nothing to do with nvcc.

    Raises:
        ValueError: the condition mixes macros of nvcc with others, so that it may hold or not.
    """
    if not _OF_NVCC.search(condition):
        return None
    known = re.sub(rf"defined\s*\(?\s*{_OF_NVCC.pattern}\s*\)?", "False", condition)
    known = _OF_NVCC.sub("0", known)
    python = known.replace("&&", " and ").replace("||", " or ").replace("!=", "\0").replace("!", " not ")
    python = python.replace("\0", "!=").strip()
    if re.search(r"[A-Za-z_]\w*", re.sub(r"\b(False|and|or|not)\b", "", python)):
        raise ValueError(f"{condition!r} mixes nvcc's macros with others: nest two conditions")
    return bool(eval(compile(ast.parse(python, mode="eval"), "condition", "eval"), {"__builtins__": {}}))


def device_only_regions(file: str, text: str) -> list[Region]:
    """Return the regions of a source file that only nvcc compiles.

    Raises:
        ValueError: a condition cannot be decided; the message names it.
    """
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL)
    found: list[list[str]] = []
    # Of each open #if: whether this branch is compiled in the emulation, and whether an earlier branch was.
    stack: list[tuple[bool, bool]] = []
    before = False
    for full_line in text.splitlines():
        line = re.sub(r"(?<!:)//.*", "", full_line).strip()
        directive = re.match(r"#\s*(ifdef|ifndef|if|elif|else|endif)\b(.*)", line)
        if directive:
            word, rest = directive[1], directive[2].strip()
            if word in ("if", "ifdef", "ifndef"):
                condition = {"if": rest, "ifdef": f"defined({rest})", "ifndef": f"!defined({rest})"}[word]
                holds = holds_in_emulation(condition)
                stack.append((holds is not False, holds is True))
            elif word == "elif":
                holds, taken = holds_in_emulation(rest), stack[-1][1]
                stack[-1] = (holds is not False and not taken, taken or holds is True)
            elif word == "else":
                stack[-1] = (not stack[-1][1], True)
            else:
                stack.pop()
        elif line and not all(compiled for compiled, _ in stack):
            if not before:
                found.append([])
            found[-1].append(line)
        if directive or line:
            before = not directive and not all(compiled for compiled, _ in stack)
    return [Region(file, lines[0], len(lines)) for lines in found]


def regions_of_csrc() -> list[Region]:
    """Return all regions; a .cu file that the emulation does not compile is one, without leading comments."""
    regions = []
    for path in sorted(CSRC.rglob("*")):
        if path.suffix not in (".h", ".cuh", ".cu", ".cpp"):
            continue
        file, text = str(path.relative_to(CSRC)), path.read_text()
        if path.suffix == ".cu" and path not in KERNELS:
            text = f"#if defined(__CUDACC__)\n{text}\n#endif"
            lines = device_only_regions(file, text)
            regions.append(Region(file, lines[0].first, sum(region.lines for region in lines)))
        else:
            regions += device_only_regions(file, text)
    return regions


def listed() -> list[tuple[Region, str]]:
    """Return the README's table: regions, and what shows each. Regions that begin alike have a row each."""
    rows = re.findall(r"^\| `([^`|]+)` \| `([^`|]+)` \| (\d+) \| (.+) \|$", LIST.read_text(), re.MULTILINE)
    return [(Region(file, first, int(lines)), shown) for file, first, lines, shown in rows]


def test_the_readme_lists_every_line_that_no_emulation_sees():
    """A new one needs a row there: a test of its own, or a reason."""
    assert sorted(regions_of_csrc()) == sorted(region for region, _ in listed())


def test_what_is_said_to_show_a_line_exists():
    for region, shown in listed():
        tests = re.findall(r"`(test_\w+)\.py(?:::(test_\w+))?`", shown)
        assert tests or shown.startswith("No test: "), f"{region}: name a test, or give a reason after 'No test: '"
        for file, name in tests:
            texts = [path.read_text() for path in TESTS.parent.glob(f"*/{file}.py")]
            assert any(name == "" or f"def {name}(" in text for text in texts), f"{region}: no {name} in {file}.py"


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("defined(__CUDACC__)", False),
        ("!defined(__CUDA_ARCH__)", True),
        ("defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900", False),
        ("!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900", True),
        ("__CUDA_ARCH__ != 0", False),
        ("defined(__AVX2__)", None),
    ],
)
def test_conditions_are_decided_as_the_emulation_compiles(condition, holds):
    assert holds_in_emulation(condition) is holds


def test_regions_are_found_in_nested_conditions_and_all_their_branches():
    text = """
    always;
    #ifdef __CUDACC__  // nvcc
    one;

    // a comment
    #if defined(__AVX2__)
    two;
    #endif
    three;  // with a comment
    four;
    #elif defined(__linux__)
    never here;
    #else
    seen;
    #endif
    /* #if defined(__CUDA_ARCH__)
    no code */
    #ifndef __CUDA_ARCH__
    seen;
    #elif __CUDA_ARCH__ >= 900
    five;
    #else
    six;
    #endif
    #if defined(__AVX2__)
    seen;
    #else
    seen;
    #endif
    """
    firsts = [(region.first, region.lines) for region in device_only_regions("file", text)]
    assert firsts == [("one;", 1), ("two;", 1), ("three;", 2), ("five;", 1), ("six;", 1)]
    with pytest.raises(ValueError, match="nest two conditions"):
        device_only_regions("file", "#if defined(__CUDACC__) && defined(NDEBUG)\n#endif")


needs_nvcc = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))
SOURCE = TESTS / "device_only_lines.cu"


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> dict[str, list[str]]:
    return ptx_of(SOURCE, tmp_path_factory.mktemp("ptx"), 90)


@pytest.fixture(scope="module", params=[80, 90], ids=["sm_80", "sm_90"])
def architecture(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def machine_code(architecture, tmp_path_factory) -> dict[str, list[str]]:
    return machine_code_of(SOURCE, tmp_path_factory.mktemp("machine_code"), architecture)


def opcodes(instructions: list[str]) -> list[str]:
    """Without operands and predicates."""
    return [re.sub(r"^@!?U?P\w+ ", "", instruction).split()[0] for instruction in instructions]


def accesses(instructions: list[str], kind: str) -> dict[str, int]:
    """Which offset from its pointer each register is loaded from, or stored to."""
    found = {}
    for instruction in instructions:
        loaded = re.match(r"ld\.global\S* (\S+), \[%rd\d+(?:\+(\d+))?\]", instruction)
        stored = re.match(r"st\.global\S* \[%rd\d+(?:\+(\d+))?\], (\S+)", instruction)
        if loaded and kind == "ld":
            found[loaded[1]] = int(loaded[2] or 0)
        if stored and kind == "st":
            found[stored[2]] = int(stored[1] or 0)
    return found


def only(instructions: list[str], start: str) -> str:
    found = [instruction for instruction in instructions if instruction.startswith(start)]
    assert len(found) == 1, instructions
    return found[0]


def register_lists(instruction: str) -> list[list[str]]:
    return [registers.split(", ") for registers in re.findall(r"\{([^}]*)\}", instruction)]


@needs_nvcc
@pytest.mark.parametrize(("kernel", "types"), [("mma_bfloat16", "bf16.bf16"), ("mma_half", "f16.f16")])
def test_each_operand_of_a_tensor_core_product_has_its_place_in_ptx(ptx, kernel, types):
    product = only(ptx[kernel], "mma")
    assert product.split()[0] == f"mma.sync.aligned.m16n8k16.row.col.f32.{types}.f32"
    loaded, stored = accesses(ptx[kernel], "ld"), accesses(ptx[kernel], "st")
    d, a, b, c = register_lists(product)
    assert [stored[register] for register in d] == [0, 4, 8, 12]
    assert [loaded[register] for register in a] == [0, 4, 8, 12]
    assert [loaded[register] for register in b] == [16, 20]
    assert [loaded[register] for register in c] == [0, 4, 8, 12]

    smaller = kernel.replace("mma", "mma_depth_8")
    product, loaded, stored = only(ptx[smaller], "mma"), accesses(ptx[smaller], "ld"), accesses(ptx[smaller], "st")
    assert product.split()[0] == f"mma.sync.aligned.m16n8k8.row.col.f32.{types}.f32"
    d, a, b, c = register_lists(product)
    assert [stored[register] for register in d] == [loaded[register] for register in c] == [0, 4, 8, 12]
    assert [loaded[register] for register in a] == [0, 4] and [loaded[register] for register in b] == [8]


@needs_nvcc
@pytest.mark.parametrize(("kernel", "how"), [("ldmatrix", ""), ("ldmatrix_transposed", ".trans")])
def test_each_matrix_that_ldmatrix_loads_has_its_place_in_ptx(ptx, kernel, how):
    load = only(ptx[kernel], "ldmatrix")
    assert load.split()[0] == f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16"
    stored = accesses(ptx[kernel], "st")
    assert [stored[register] for register in register_lists(load)[0]] == [0, 4, 8, 12]
    # Loaded from where the row was written: a pointer into shared memory, not a generic one.
    written = only(ptx[kernel], "st.shared")
    assert re.findall(r"\[(%r\d+)\]", load) == re.findall(r"\[(%r\d+)\]", written) != []


@needs_nvcc
def test_tensor_cores_get_one_instruction_for_each_operation(machine_code):
    assert opcodes(machine_code["mma_bfloat16"]).count("HMMA.16816.F32.BF16") == 1
    assert opcodes(machine_code["mma_half"]).count("HMMA.16816.F32") == 1
    assert opcodes(machine_code["mma_depth_8_bfloat16"]).count("HMMA.1688.F32.BF16") == 1
    assert opcodes(machine_code["mma_depth_8_half"]).count("HMMA.1688.F32") == 1
    assert opcodes(machine_code["ldmatrix"]).count("LDSM.16.M88.4") == 1
    assert opcodes(machine_code["ldmatrix_transposed"]).count("LDSM.16.MT88.4") == 1


@needs_nvcc
def test_sums_in_global_memory_return_nothing_and_four_travel_together_from_sm_90_on(machine_code, architecture):
    def requests(kernel: str) -> list[str]:
        return [name for name in opcodes(machine_code[kernel]) if re.match("RED|ATOM", name)]

    if architecture >= 90:
        assert requests("add_four_floats") == ["REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU"]
    else:
        assert requests("add_four_floats") == ["RED.E.ADD.F32.FTZ.RN.STRONG.GPU"] * 4
    prefix = "REDG" if architecture >= 90 else "RED"
    assert requests("add_to_integer") == [f"{prefix}.E.ADD.64.STRONG.GPU"]
    assert requests("poison") == [f"{prefix}.E.MIN.S64.STRONG.GPU"]
    hidden = requests("add_to_hidden_pointers")
    assert len(hidden) == 3 + (1 if architecture >= 90 else 4) + 2 + 1 + 1
    assert all(name.startswith(f"{prefix}.E.") for name in hidden), "no branch for shared memory"


FLOORS = {
    "floor_float32": "F2I.FLOOR.NTZ",
    "floor_float64": "F2I.S64.F64.FLOOR",
}


@needs_nvcc
def test_rounding_down_is_one_instruction(machine_code):
    for kernel, conversion in FLOORS.items():
        conversions = [name for name in opcodes(machine_code[kernel]) if re.match("F2I|FRND|FSETP|DSETP|I2F", name)]
        assert conversions == [conversion]


@needs_nvcc
@pytest.mark.parametrize("kernel", ["from_fixed_float32", "from_fixed_float64"])
def test_sums_in_fixed_point_are_not_divided(machine_code, kernel):
    names = opcodes(machine_code[kernel])
    assert not [name for name in names if re.match("MUFU|CALL", name)], "a division"
    assert "DMUL" in names


@needs_nvcc
def test_nvcc_masks_the_selector_of_a_byte_permutation(ptx):
    """As the emulation's `__byte_perm` does; the instruction itself would replicate a sign."""
    masked = re.search(r"(%r\d+), %r\d+, (\d+)$", only(ptx["choose_bytes"], "and"))
    assert masked and int(masked[2]) == 0x7777
    assert only(ptx["choose_bytes"], "prmt").endswith(f", {masked[1]}")


@needs_nvcc
def test_a_row_of_a_pointer_kept_whole_is_one_instruction_away(ptx, machine_code):
    arithmetic = [name for name in opcodes(machine_code["row_of_bytes"]) if re.match("IMAD.WIDE|IADD|LEA|UIADD", name)]
    assert arithmetic == ["IMAD.WIDE.U32"]
    offset = re.fullmatch(r"mul\.wide\.u32 (%rd\d+), (%r\d+), (%r\d+)", only(ptx["row_of_bytes"], "mul.wide"))
    assert offset is not None
    parameters = re.findall(r"ld\.param\.u\d+ (%r\w+), \[row_of_bytes_param_(\d)\]", "\n".join(ptx["row_of_bytes"]))
    number_of = {register: int(number) for register, number in parameters}
    assert (number_of[offset[2]], number_of[offset[3]]) == (1, 2)
    base, added = only(ptx["row_of_bytes"], "add.s64").split(", ")[1:]
    assert (number_of[base], added) == (0, offset[1])


@needs_nvcc
@pytest.mark.parametrize(
    ("kernel", "function"),
    [
        ("approximate_exp2", "ex2.approx.ftz.f32"),
        ("approximate_reciprocal", "rcp.approx.ftz.f32"),
        ("approximate_log2", "lg2.approx.ftz.f32"),
    ],
)
def test_approximate_functions_take_the_number_and_return_the_result(ptx, machine_code, kernel, function):
    result, argument = only(ptx[kernel], function).removeprefix(function).strip().split(", ")
    assert accesses(ptx[kernel], "ld") == {argument: 0} and accesses(ptx[kernel], "st") == {result: 0}
    assert len([name for name in opcodes(machine_code[kernel]) if name.startswith("MUFU")]) == 1
