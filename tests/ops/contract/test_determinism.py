"""Results depend on the inputs alone: not on threads, on earlier calls or on uninitialised memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from dino_kernels import fused_ms_deform_attn
from dino_kernels.testing import CASES, Case, run
from tests.comparison import assert_same_bits
from tests.ops.contract.calls import OPS, assert_same, perform

ENCODER = Case("encoder", 2, 411, 8, 32, ((14, 20), (7, 10), (4, 5), (2, 3)), (4, 4, 4, 4), layout="local", mask=True)
# Few samples per row: rows of grad_value are divided among threads, for the second case into more parts than rows.
FEW_SAMPLES = (
    Case("decoder", 1, 50, 3, 16, ((14, 20), (7, 10)), (2, 2), reference_coordinates=4),
    Case("six_rows", 1, 3, 1, 8, ((2, 3),), (3,)),
)
ONE_IMAGE_ONE_HEAD = Case("one_head", 1, 411, 1, 36, ((14, 20), (7, 10)), (4, 3))


@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16"])
def test_any_number_of_threads_gives_the_same_bits(on_cpu, restored_threads, dtype):
    for sizes in OPS[on_cpu.op].large:
        inputs = on_cpu.inputs(dtype, **sizes)
        torch.set_num_threads(1)
        alone = perform(on_cpu.op, inputs, "cpu")
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert_same(perform(on_cpu.op, inputs, "cpu"), alone)


def test_any_number_of_threads_gives_the_same_bits_with_gaps_between_levels(make_inputs, restored_threads, op):
    inputs = make_inputs(op, ONE_IMAGE_ONE_HEAD, torch.float32, "cpu")
    inputs["value"] = torch.randn(1, 400, 1, 36, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inputs["level_start_index"] = torch.tensor([50, 30])  # and they share rows
    torch.set_num_threads(1)
    alone = run(op, inputs, "cpu")
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert_same_bits(run(op, inputs, "cpu"), alone)


@pytest.mark.parametrize("case", FEW_SAMPLES, ids=lambda case: case.id)
def test_any_number_of_threads_gives_the_same_bits_with_few_samples(make_inputs, restored_threads, op, case):
    inputs = make_inputs(op, case, torch.float32, "cpu")
    torch.set_num_threads(1)
    alone = run(op, inputs, "cpu")
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert_same_bits(run(op, inputs, "cpu"), alone)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["fp32", "fp64", "bf16"])
def test_reading_one_head_at_a_time_changes_no_bit(make_inputs, restored_threads, op, dtype, coordinates):
    """Eight threads are too many for two heads, so that each takes whole queries."""
    case = Case("two_heads", 1, 90, 2, 32, ((6, 9), (4, 5), (3, 4)), (7, 5, 4), coordinates, mask=True)
    inputs = make_inputs(op, case, dtype, "cpu")
    if "reference_points" in inputs:
        inputs["reference_points"] = inputs["reference_points"].detach()
    results = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        results.append(run(op, inputs, "cpu"))
    for result in results[:-1]:
        assert_same_bits(result, results[-1])


def test_repeated_calls_give_the_same_bits(subject, deterministic):
    inputs = subject.inputs()
    first = perform(subject.op, inputs, subject.backend)
    for _ in range(3):
        assert_same(perform(subject.op, inputs, subject.backend), first)


def test_deterministic_mode_changes_no_bit_on_a_cpu(on_cpu):
    """Tests in deterministic mode, in which all kernels give the same bits, are therefore no weaker on a CPU."""
    inputs = on_cpu.inputs(**OPS[on_cpu.op].large[0])
    usual = perform(on_cpu.op, inputs, "cpu")
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(perform(on_cpu.op, inputs, "cpu"), usual)
    finally:
        torch.use_deterministic_algorithms(False)


def test_calls_from_several_python_threads_do_not_disturb_each_other(on_cpu):
    calls = [on_cpu.inputs(**sizes) for sizes in ({}, *OPS[on_cpu.op].large) for _ in range(2)]
    expected = [perform(on_cpu.op, inputs, "cpu") for inputs in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            results = pool.map(lambda inputs: perform(on_cpu.op, inputs, "cpu"), calls)
            for result, wanted in zip(results, expected, strict=True):
                assert_same(result, wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_element_of_every_result_is_written(make_inputs, op, kernel, deterministic, case):
    """Deterministic mode fills new tensors with NaN, so that elements not written show."""
    result = run(op, make_inputs(op, case, torch.float32, kernel), kernel)
    for name, tensor in result.named().items():
        assert tensor.isfinite().all(), name


def test_deterministic_mode_fills_new_memory_with_nan(deterministic):
    """A precondition of the test above."""
    assert torch.empty(1000).isnan().all()


def test_an_image_does_not_depend_on_its_batch(make_inputs, op):
    inputs = make_inputs(op, ENCODER, torch.float32, "cpu")
    grad_output = torch.ones_like(run(op, inputs, "cpu").output)
    both = run(op, inputs, "cpu", grad_output)
    shared = ("spatial_shapes", "level_start_index", "num_points")
    for image in range(2):
        one = {
            name: x if name in shared or x is None else x.detach()[image : image + 1].clone()
            for name, x in inputs.items()
        }
        for name, argument in one.items():
            if isinstance(argument, Tensor):
                argument.requires_grad_(inputs[name].requires_grad)
        alone = run(op, one, "cpu", grad_output[:1])
        for (name, tensor), batched in zip(alone.named().items(), both.named().values(), strict=True):
            assert torch.equal(tensor[0], batched[image]), name


def test_a_call_in_a_forked_dataloader_worker(make_inputs, restored_threads):
    """A forked worker has one thread; a call that waited for the parent's pool would hang."""
    case = Case("decoder", 1, 97, 8, 32, ((14, 20), (7, 10)), (4, 4), reference_coordinates=4)
    inputs = make_inputs("fused_ms_deform_attn", case, torch.float32, "cpu", requires_grad=False)
    torch.set_num_threads(2)
    expected = fused_ms_deform_attn(**inputs, backend="cpu")

    class Calls(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Tensor:
            return fused_ms_deform_attn(**inputs, backend="cpu")

    loader = torch.utils.data.DataLoader(Calls(), batch_size=None, num_workers=1, timeout=60)
    for result in loader:
        assert torch.equal(result, expected)
