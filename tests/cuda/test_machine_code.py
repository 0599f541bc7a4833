"""The machine code of the built CUDA library: what it computes, how long it is, and what should not be in it.

The library's own sm_90 code is executed on the CPU, so this shows what no emulation of the sources does: inline PTX,
code under __CUDA_ARCH__, and what the compiler made of the rest. Ceilings are the stored counts of benchmarks/results.
After an intended change: `python -m benchmarks.sass.counts --update`, and the numbers are in the diff.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.measure import report
from benchmarks.sass import attention, counts, matching
from benchmarks.sass.attention import AttentionLaunch, Case, Inputs, narrow, prepare, widened
from benchmarks.sass.disassembly import Kernel, MissingTool, compiler
from benchmarks.sass.instructions import Instruction
from benchmarks.sass.memory import Ledger
from dino_kernels import fused_ms_deform_attn, ms_deform_attn

ARCH = 90
STORED = {entry["label"]: counts.Counted(**entry) for entry in counts.stored()["kernels"]}
# Others are like one of these: fp16 like bf16. Of them, only what needs no execution.
LIKE_OTHERS = ("fp16",)
EXECUTED = [label for label in STORED if not any(words in label for words in LIKE_OTHERS)]


@cache
def library() -> dict[str, tuple[Kernel, str]]:
    """Return (kernel, demangled name) by label; skip the test if they cannot be read."""
    if not counts.LIBRARY.exists():
        pytest.skip("dino_kernels/_cuda.so was not built")
    try:
        return {label: (kernel, name) for kernel, name, label in counts.hot_kernels(counts.LIBRARY, ARCH)}
    except MissingTool as missing:
        pytest.skip(str(missing))
    except RuntimeError as error:
        if "no machine code" not in str(error):
            raise
        pytest.skip(str(error))


def kernel_of(label: str) -> tuple[Kernel, str]:
    if label not in library():
        pytest.fail(f"the library has no kernel {label!r}; python -m benchmarks.sass.counts --update")
    return library()[label]


def same_compiler() -> None:
    built, expected = compiler(counts.LIBRARY, ARCH), counts.stored()["compiler"]
    if built != expected:
        pytest.skip(f"counts are stored for ptxas {expected}, the library is by {built}")


def test_every_hot_kernel_has_stored_counts():
    assert sorted(library()) == sorted(STORED)


@cache
def counted_block(label: str) -> tuple[counts.Counted, Ledger]:
    kernel, name = kernel_of(label)
    return counts.count(kernel, name, label, blocks=1)


@pytest.mark.parametrize("label", EXECUTED)
def test_no_kernel_executes_more_instructions_than_stored(label):
    kernel_of(label)
    same_compiler()
    counted, _ = counted_block(label)
    assert counted.of_one_block <= STORED[label].of_one_block, f"per {counted.per}: {counts.UPDATE}"


@pytest.mark.parametrize("label", STORED)
def test_resources_and_findings_do_not_exceed_the_stored_ones(label):
    kernel, _ = kernel_of(label)
    same_compiler()
    expected = STORED[label]
    assert kernel.registers <= expected.registers, counts.UPDATE
    assert kernel.stack <= expected.stack_bytes, counts.UPDATE
    found = {title: find(kernel) for title, find in counts.FINDINGS.items()}
    assert {title: len(lines) for title, lines in found.items() if len(lines) > expected.findings[title]} == {}, found


def labels(*words: str) -> list[str]:
    return [label for label in STORED if all(word in label for word in words)]


@pytest.mark.parametrize(("label", "most"), [("forward large bf16 fused", 1500), ("backward large bf16 fused", 4500)])
def test_eight_items_of_an_encoder_take_few_instructions(label, most):
    assert STORED[label].instructions <= most


def is_16_bit(label: str) -> bool:
    return "bf16" in label or "fp16" in label


def test_half_of_a_multiprocessor_is_occupied_forward_and_three_eighths_in_16_bit():
    for label in labels("forward"):
        # Products of tensor cores wait less: three blocks, each thread with registers for the next pair's numbers.
        least = 0.375 if "large" in label and is_16_bit(label) else 0.5
        assert STORED[label].occupancy(ARCH) >= least, label


def test_three_eighths_of_a_multiprocessor_are_occupied_backward_in_16_bit():
    for label in filter(is_16_bit, [*labels("backward large"), *labels("backward tile")]):
        assert STORED[label].occupancy(ARCH) >= 0.37, label


def executed_by(label: str, *bases: str) -> list[str]:
    """Instructions that were reached, of some kinds."""
    kernel, _ = kernel_of(label)
    _, ledger = counted_block(label)
    return [str(ins) for ins in kernel.instructions if ins.base in bases and ledger.at.get(ins.address)]


@pytest.mark.parametrize("label", [label for label in EXECUTED if "forward large bf16" in label])
def test_no_register_of_the_16_bit_forward_is_read_back_from_memory(label):
    assert executed_by(label, "LDL") == []


def found_in(title: str, *words: str) -> dict[str, list[str]]:
    lines = {label: counts.FINDINGS[title](kernel_of(label)[0]) for label in labels(*words)}
    assert lines
    return {label: found for label, found in lines.items() if found}


@pytest.mark.parametrize("words", [("forward small",), ("forward large fp32",), ("backward",)], ids="".join)
def test_attention_has_no_generic_access(words):
    assert found_in("generic accesses", *words) == {}


@pytest.mark.parametrize("label", [label for label in EXECUTED if "forward large bf16" in label])
def test_only_the_fallback_for_infinities_has_generic_accesses(label):
    """It gets the parameters by reference, and is one of the subroutines behind the kernel's own code."""
    kernel, _ = kernel_of(label)
    assert executed_by(label, "LD", "ST", "ATOM") == []
    calls = [ins for ins in kernel.instructions if ins.base == "CALL" and "sum_rows_again" in str(ins)]
    assert len(calls) == 1
    after = calls[0].address
    assert all(int(line.split(":")[0], 16) > after for line in counts.FINDINGS["generic accesses"](kernel))


@pytest.mark.parametrize("words", [("forward",), ("backward",), ("matching_cost",)], ids="".join)
def test_nothing_is_computed_in_float64_for_smaller_types(words):
    assert found_in("float64 arithmetic", *words) == {}


BACKWARD = ["backward large", "backward tile", "backward small"]


@pytest.mark.parametrize("words", ["forward", *BACKWARD])
def test_shared_memory_is_read_in_vectors(words):
    assert found_in("byte loads of shared memory", words) == {}


def test_sums_of_gradients_are_added_16_bytes_a_lane():
    assert found_in("reductions of less than 16 bytes", "backward") == {}


def partial_sectors(*words: str) -> dict[str, float]:
    chosen = {label: STORED[label].memory for label in labels(*words)}
    assert chosen and all(memory["RED sectors"] > 0 for memory in chosen.values())
    return {label: memory["RED partial sectors"] for label, memory in chosen.items() if memory["RED partial sectors"]}


@pytest.mark.parametrize("words", BACKWARD)
def test_reductions_cover_whole_sectors(words):
    assert partial_sectors(words) == {}


# 44 queries and one head: a block of the large kernels, and one that is not full.
SMALL = Case("small", ((4, 6), (3, 4), (2, 3), (1, 2)), 4, heads=1)


@cache
def rare_kernels() -> dict[str, tuple[Kernel, str]]:
    """Those that are not hot and have their results compared."""
    library()
    found = counts.hot_kernels(counts.LIBRARY, ARCH, r"forward_mma_kernel<__nv_bfloat16, true, (16, true|32)")
    return {label: (kernel, name) for kernel, name, label in found}


def run_all(label: str, case: Case) -> AttentionLaunch:
    kernel, name = rare_kernels()[label] if "mask" in label or "K<=" in label else kernel_of(label)
    launch = prepare(kernel, name, case)
    for index in range(launch.grid):
        launch.run(index)
    return launch


def rounded(array: np.ndarray, dtype: str) -> Tensor:
    return torch.tensor(widened(narrow(array, dtype), dtype), requires_grad=True)


def reference(launch: AttentionLaunch, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, and value, positions and weights with gradients, in float64 from the rounded inputs."""
    value, dtype = rounded(inputs.value, launch.dtype), launch.given
    positions, weights = rounded(inputs.positions, dtype), rounded(inputs.weights, dtype)
    shapes, points = launch.case.shapes, [launch.case.points] * len(launch.case.shapes)
    options = {"num_points": points, "backend": "reference"}
    if inputs.reference is not None:
        points_of = torch.tensor(inputs.reference).double()
        output = fused_ms_deform_attn(value, shapes, None, points_of, positions, weights, **options)
    else:
        output = ms_deform_attn(value, shapes, None, positions, weights, **options)
    return output, value, positions, weights


def smooth(launch: AttentionLaunch, inputs: Inputs) -> np.ndarray:
    """[B, Q, M, K] of samples that are not on the line between two pixels, where the gradient of a position jumps."""
    level = np.repeat(np.arange(len(launch.case.shapes)), launch.case.points)
    size = np.array([(w, h) for h, w in launch.case.shapes])[level]
    given = widened(narrow(inputs.positions, launch.given), launch.given)
    if inputs.reference is None:
        pixel = given * size - 0.5
    else:
        boxes = inputs.reference[:, :, None, level].astype(np.float64)
        scale = boxes[..., 2:] / launch.case.points * 0.5 * size if boxes.shape[-1] == 4 else 1.0
        pixel = boxes[..., :2] * size + given * scale - 0.5
    return np.abs(pixel - np.round(pixel)).min(-1) > 1e-4


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


EPSILON = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-23}


@pytest.mark.parametrize(
    ("label", "case"),
    [
        ("forward large bf16 fused", SMALL),
        ("forward large fp16 classic", SMALL),
        ("forward large bf16 fused mask", SMALL),
        ("forward large bf16 fused K<=32", replace(SMALL, points=8)),
        ("forward large fp32 classic", SMALL),
        ("forward small bf16 fused", replace(SMALL, queries=5, coordinates=4)),
        ("forward small fp16 classic", replace(SMALL, queries=5)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_forward_machine_code_computes_the_op(label, case):
    launch = run_all(label, case)
    inputs = launch.inputs
    assert inputs is not None
    output, *_ = reference(launch, inputs)
    expected = output.detach().numpy().reshape(inputs.grad_output.shape)
    found = launch.result("output", launch.dtype, expected.shape)
    assert relative_error(found, expected) <= 2 * EPSILON[launch.dtype]


@pytest.mark.parametrize(
    ("label", "case"),
    [
        ("backward large bf16 fused", SMALL),
        ("backward large fp16 classic", SMALL),
        ("backward tile bf16 fused", SMALL),
        ("backward large fp32 classic", SMALL),
        ("backward small bf16 fused", replace(SMALL, queries=5, coordinates=4)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_backward_machine_code_computes_the_gradients(label, case):
    launch = run_all(label, case)
    inputs = launch.inputs
    assert inputs is not None
    output, value, positions, weights = reference(launch, inputs)
    output.backward(rounded(inputs.grad_output, launch.dtype).detach().reshape(output.shape))
    assert value.grad is not None and positions.grad is not None and weights.grad is not None
    accumulated = 2.0**-20  # float32, a few hundred terms
    assert relative_error(launch.result("sums", "fp32", tuple(value.shape)), value.grad.numpy()) <= accumulated
    found = launch.result("grad_weights", launch.given, tuple(weights.shape))
    limit = max(accumulated, 2 * EPSILON[launch.given])
    assert relative_error(found, weights.grad.numpy()) <= limit
    chosen = smooth(launch, inputs)
    assert chosen.mean() > 0.5
    found = launch.result("grad_positions", launch.given, tuple(positions.shape))
    assert relative_error(found[chosen], positions.grad.numpy()[chosen]) <= max(limit, 2.0**-14)


def test_a_changed_instruction_changes_the_result():
    """Negative control: the executed code is the library's, and the comparison sees one wrong operation."""
    kernel, name = kernel_of("forward large fp32 classic")
    changed, done = [], False
    for ins in kernel.instructions:
        if ins.base == "FFMA" and not done and ins.address > 16 * len(kernel.instructions) // 3:
            ins, done = Instruction(ins.address, "FADD", ins.operands[:3], ins.predicate), True
        changed.append(ins)
    launch = prepare(replace(kernel, instructions=changed), name, SMALL)
    launch.run(0)
    inputs = launch.inputs
    assert inputs is not None
    output, *_ = reference(launch, inputs)
    expected = output.detach().numpy().reshape(inputs.grad_output.shape)
    error = relative_error(launch.result("output", "fp32", expected.shape), expected)
    assert not error <= 2 * EPSILON["fp32"]


def test_wrong_lanes_of_an_item_are_noticed(monkeypatch):
    kernel, name = kernel_of("forward large fp32 classic")
    wrong = replace(attention.FAMILIES[0], lanes=("group", "V"))
    monkeypatch.setattr(attention, "FAMILIES", (wrong,))
    launch = prepare(kernel, name, replace(SMALL, heads=2))
    launch.run(0)
    with pytest.raises(ValueError, match="Correct the lanes"):
        launch.check(1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_the_cost_machine_code_computes_the_costs(dtype):
    kernel, _ = kernel_of("matching_cost")
    launch = matching.cost(kernel, dtype)
    launch.run(1)
    expected = matching.focal_cost_matrix("early", dtype=dtype)
    found = launch.memory.get(launch.addresses["cost"], np.float32, expected.shape)
    tile = slice(matching.TILE, 2 * matching.TILE)
    assert np.abs(found[:, tile] - expected[:, tile]).max() <= 2e-5
    assert (found[:, : matching.TILE] == 0).all(), "another block's"


@pytest.mark.parametrize(
    ("label", "costs"),
    [
        ("assignment small fp32", "early"),
        ("assignment small fp32", "collapsed"),
        ("assignment LowestSolver fp32", "early"),
    ],
)
def test_the_assignment_machine_code_finds_the_least_cost(label, costs):
    optimize = pytest.importorskip("scipy.optimize")
    kernel, _ = kernel_of(label)
    launch = matching.assignment(kernel, label, costs)
    launch.run(0)
    launch.check(1)
    matrix = matching.focal_cost_matrix(costs, matching.targets_for(label)).astype(np.float32)
    columns = launch.memory.get(launch.addresses["columns"], np.int64, (len(matrix),))
    rows, best = optimize.linear_sum_assignment(matrix)
    assert len(set(columns.tolist())) == len(matrix)
    assert matrix[rows, columns].sum() == pytest.approx(matrix[rows, best].sum(), abs=1e-4)


def test_the_table_of_counts_has_a_row_a_kernel():
    table = counts.table(counts.stored())
    assert len(table) == 1 + len(STORED) and all(len(row) == len(table[0]) for row in table)
    text = "<!-- results:counts -->\nold\n<!-- /results -->"
    load: Callable[..., dict] = lambda folder, file: counts.stored()  # noqa: E731
    shown = report.update(text, load)
    assert "forward large bf16 fused" in shown and "Counted, not measured" in shown and "old" not in shown
