"""Every step of attention keeps the tolerance rule of the kernels, and is what the pages say of it."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dino_kernels.testing import CASES, Case, sample_inputs
from dino_kernels.testing.accuracy import Result, assert_result_accurate, random_grad_output
from dino_kernels.tutorial import counting, native
from dino_kernels.tutorial.attention import call, run, step2_vectors, step6_tiles
from dino_kernels.tutorial.attention.problem import DECODER, ENCODER, LARGE_ENCODER, OP, SMALL, Problem, problem

FOLDER = Path(call.__file__).parent
BY_NAME = {case.name: case for case in CASES}
CHOSEN = ["decoder_masked", "rtdetr", "rfdetr", "odd_points", "level_without_points"]
CHOSEN += ["one_pixel_levels", "channels_3", "channels_36", "hostile", "hostile_boxes", "hostile_masked"]
CHOSEN += ["no_queries", "no_images", "no_points"]
STEPS = {label: step for label, step in run.STEPS.items() if step.devices != run.GPU and label[0] in "234567"}


def check(step: run.Step, case: Case, dtype: torch.dtype | None = None, attend=None) -> None:
    """Assert the tolerance rule on a case's output and, if the step has a backward, gradients."""
    dtype = dtype or step.dtype
    inputs = sample_inputs(OP, case, dtype, requires_grad=step.backward)
    given = problem(case, dtype)
    if step.backward:
        given = given.requires_grad()
        output = step.attend(given)
        gradients = torch.autograd.grad(output, given.inputs, random_grad_output(output))
    else:
        output, gradients = (attend or step.attend)(given), []
    names = ("value", "reference_points", "sampling_offsets", "attention_logits")
    by_name = {name: grad.view_as(inputs[name]) for name, grad in zip(names, gradients, strict=False)}
    assert_result_accurate(OP, inputs, Result(output.detach(), by_name), step.label)


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.parametrize("label", STEPS)
def test_a_step_keeps_the_tolerance_rule(label, case):
    check(STEPS[label], BY_NAME[case])


@pytest.mark.parametrize("case", ["hostile_masked", "level_without_points"])
def test_the_loop_keeps_the_tolerance_rule(case):
    check(run.STEPS["1 loop"], BY_NAME[case])


@pytest.mark.parametrize("label", ["grid_sample", "8 kernel, float32", "8 kernel, 16 bits"])
def test_definition_and_kernel_are_called_with_the_right_arguments(label):
    check(run.STEPS[label], SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["hostile_masked", "channels_3", "level_without_points", "no_points"])
def test_the_triton_step_in_the_interpreter(case, dtype):
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from tests.triton import interpreter

    name = "dino_kernels.tutorial.attention.triton_rows"
    with interpreter._interpreted_kernels():
        sys.modules.pop(name, None)
        attend = importlib.import_module(name).attend
    sys.modules.pop(name)  # later imports get the compiled kernel
    check(run.STEPS["4 row by row, Triton"], BY_NAME[case], dtype, attend)


# Threads that neither wait nor exchange numbers may run one after the other.
ON_A_CPU = """
#include <cmath>
struct { unsigned x; } blockIdx, threadIdx, blockDim{32};
#define __global__
#include "cuda_rows.cu"
extern "C" void forward(const Call& c) {
  for (blockIdx.x = 0; blockIdx.x < c.B * c.Q * c.M; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) rows_kernel(c);
}
"""


@pytest.mark.parametrize(
    "case", ["decoder_masked", "rtdetr", "hostile_boxes", "channels_36", "channels_3", "no_points"]
)
def test_the_cuda_step_thread_by_thread(case, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "cuda_step"
    folder.mkdir(exist_ok=True)
    for path in (*FOLDER.glob("*.h"), FOLDER / "cuda_rows.cu"):
        (folder / path.name).write_text(path.read_text())
    (folder / "on_a_cpu.cpp").write_text(ON_A_CPU)
    load = native.load
    monkeypatch.setattr(native, "load", lambda source: load(folder / "on_a_cpu.cpp"))
    check(run.STEPS["4 row by row, CUDA"], BY_NAME[case])


@pytest.mark.compiler
def test_the_cuda_step_compiles(monkeypatch, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    monkeypatch.setattr(native, "CUDA_FLAGS", [flag.replace("native", "sm_80") for flag in native.CUDA_FLAGS])
    command = [*native.compiler(".cu"), str(FOLDER / "cuda_rows.cu"), "-o", str(tmp_path / "rows.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def grad_value(source: str, given: Problem, backwards: bool) -> torch.Tensor:
    """Return the gradient of value, with tasks in order or in reverse order."""
    B, Q, M, _ = given.logits.shape
    results = {"grad_value": given.value, "grad_offsets": given.offsets, "grad_logits": given.logits}
    made = {name: torch.zeros_like(tensor) for name, tensor in results.items()}
    made["grad_frame"] = torch.zeros(B, Q, M, len(given.shapes), 4)
    grad_output = random_grad_output(torch.empty(B, Q, M * given.value.shape[3]))
    call.run(source, "backward", given, given.frame(), backwards, grad_output=grad_output, **made)
    return made["grad_value"]


@pytest.mark.parametrize("source", ["step5_owners.cpp", "step6_tiles.cpp"])
def test_the_order_of_tasks_changes_no_bit_where_each_row_has_one_owner(source):
    given = problem(BY_NAME["encoder"])
    assert torch.equal(grad_value(source, given, False), grad_value(source, given, True))


def test_the_order_of_tasks_changes_bits_where_sums_are_atomic():
    given = problem(BY_NAME["encoder"])
    first, second = (grad_value("step4_rows.cpp", given, backwards) for backwards in (False, True))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("shapes", [((5, 9), (3, 4)), ((8, 8),), ((17, 23), (9, 12), (1, 1))])
def test_tiles_visit_each_query_once_and_64_neighbours_together(shapes):
    rows = sum(height * width for height, width in shapes)
    order = call.tile_order(shapes, rows)
    assert torch.equal(order.sort().values, torch.arange(rows))
    if shapes[0] == (17, 23):
        y, x = order[:64] // 23, order[:64] % 23
        assert y.max() == x.max() == 7
    assert torch.equal(call.tile_order(shapes, rows + 1), torch.arange(rows + 1))


def test_counts_agree_with_the_shapes():
    given = problem(BY_NAME["decoder"]).requires_grad()
    counts = {x: counting.count(partial(s.attend, given), given.inputs) for x, s in STEPS.items() if "7" not in x}
    rows = given.logits.numel() * 4 * given.value.shape[3] * 4  # bytes of all gathered rows
    table = given.logits.numel() * 8 * 4
    output = given.logits.numel() // given.logits.shape[3] * given.value.shape[3] * 4
    frame = given.frame().numel() * 4
    assert counts["2 vectors"].allocated > rows + output and counts["2 vectors"].saved > rows
    assert rows + table < counts["3 fused softmax"].allocated < counts["2 vectors"].allocated
    assert output + frame <= counts["4 row by row"].allocated < output + 4 * frame
    sizes = 64 * given.value.element_size()  # and the levels' sizes, for the gradient of the frame
    assert frame <= counts["4 row by row"].saved == counts["6 tiles"].saved <= frame + sizes
    assert counts["4 row by row"].operations < counts["3 fused softmax"].operations < counts["2 vectors"].operations
    whole = counting.count(lambda: run.STEPS["8 kernel, float32"].attend(given), given.inputs)
    assert (whole.allocated, whole.saved) == (output, 0)


def test_the_counter_knows_views_from_copies():
    x = torch.zeros(10, requires_grad=True)
    counts = counting.count(lambda: (x.view(2, 5).T * 2).exp(), [x])
    assert (counts.operations, counts.allocated) == (2, 80)
    assert counts.saved == 40  # exp keeps its result


def test_the_cache_keeps_the_lines_used_last():
    assert step6_tiles.misses([0, 1, 0, 1], 32) == 2
    assert step6_tiles.misses([*range(512), *range(512)], 32) == 512  # 32 KiB of lines fit
    assert step6_tiles.misses([*range(1024), *range(1024)], 32) == 2048
    one_set = [64 * i for i in range(9)]  # 64 sets of 8 ways
    assert step6_tiles.misses(one_set[:8] * 2, 32) == 8
    assert step6_tiles.misses([*one_set[:8], one_set[0], one_set[8], one_set[0]], 32) == 9


def test_a_head_at_a_time_misses_less():
    given = problem(BY_NAME["encoder"])
    before, now = (list(step6_tiles.lines_read(given, by_head)) for by_head in (False, True))
    rows = (step2_vectors.corners(given)[0][0] // 8 != given.value.shape[1]).sum().item()
    assert len(before) == 2 * rows  # 32 channels of float32 are two lines
    assert step6_tiles.misses(now, 16) / len(now) < 0.5 * step6_tiles.misses(before, 16) / len(before)


@pytest.mark.parametrize("step", [s for s in run.STEPS.values() if s.devices != run.GPU], ids=lambda s: s.label)
def test_what_a_step_prints(step, monkeypatch):
    monkeypatch.setattr(run, "in_turns", lambda calls, device: {x: f() is None or 1.0 for x, f in calls.items()})
    text = run.measure(step, SMALL)
    assert "largest error" in text and "counted" in text and "why" in text
    assert ("times as fast" in text) == (step.before is not None)


def test_a_missing_compiler_and_an_error_in_a_file_are_explained(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "broken.cpp"
    source.write_text("this is no C++\n")
    with pytest.raises(RuntimeError, match="failed:"):
        native.load(source)
    monkeypatch.setenv("CXX", "no-such-compiler")
    source = tmp_path / "other.cpp"
    source.write_text("")
    with pytest.raises(
        native.CompilerMissing, match=r"no C\+\+20 compiler: 'no-such-compiler' was not found\. Install"
    ):
        native.load(source)


def test_the_workloads_are_those_of_the_benchmarks():
    from benchmarks.attention import workloads

    encoder = workloads.encoder("", workloads.pyramid(480, 640))
    large = workloads.ENCODER_800x1333
    for mine, theirs in ((ENCODER, encoder), (LARGE_ENCODER, large), (DECODER, workloads.DECODER_900)):
        assert replace(mine, name="") == replace(theirs, name="")
