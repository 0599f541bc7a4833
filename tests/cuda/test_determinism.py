"""The CUDA kernels under `torch.use_deterministic_algorithms(True)`: the same bits in any order.

The order of threads and blocks is drawn under emulation; a GPU has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels.ops._core import libraries
from dino_kernels.testing import CASES, Case, Result, accuracy, assert_result_accurate, random_grad_output, run
from tests.comparison import assert_same_bits, magnitudes_of_sums
from tests.cuda.emulation import backend as emulation

_LEVELS = ((8, 9), (4, 5))
# As many queries as rows: summed by tiles of queries, where the order may be any.
ENCODER = Case("encoder", 2, 92, 4, 32, _LEVELS, (4, 4), layout="local", mask=True)
DECODER = Case("decoder", 2, 61, 4, 32, _LEVELS, (4, 4), reference_coordinates=4)
FEW_QUERIES = Case("few_queries", 1, 7, 3, 32, _LEVELS, (4, 4))
ANY_CHANNELS = Case("any_channels", 2, 61, 3, 20, _LEVELS, (3, 5))
WORKLOADS = [ENCODER, DECODER, FEW_QUERIES, ANY_CHANNELS]


@pytest.fixture(params=["cuda", emulation.NAME])
def kernel(request: pytest.FixtureRequest) -> str:
    return request.param


@contextmanager
def in_order(kernel: str, seed: int) -> Iterator[None]:
    """Run threads in the order drawn from a seed; a GPU has its own."""
    if kernel == emulation.NAME:
        with emulation.schedule(seed):
            yield
    else:
        yield


def run_deterministically(op: str, inputs: dict[str, Any], kernel: str, grad_output: Tensor | None = None) -> Result:
    torch.use_deterministic_algorithms(True)
    try:
        return run(op, inputs, kernel, grad_output)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", WORKLOADS, ids=lambda case: case.id)
def test_any_order_of_threads_and_blocks_gives_the_same_bits(make_inputs, op, kernel, dtype, case):
    inputs = make_inputs(op, case, dtype, kernel)
    results = []
    for seed in range(5):
        with in_order(kernel, seed):
            results.append(run_deterministically(op, inputs, kernel))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("case", [ENCODER, DECODER, ANY_CHANNELS], ids=lambda case: case.id)
def test_without_deterministic_algorithms_the_order_decides_bits_of_grad_value_only(make_inputs, op, case):
    """A precondition of the test above."""
    inputs = make_inputs(op, case, torch.float32, emulation.NAME)
    results = []
    for seed in range(8):
        with emulation.schedule(seed):
            results.append(run(op, inputs, emulation.NAME))
    assert len({result.grads.pop("value").numpy().tobytes() for result in results}) > 1
    for result in results[1:]:
        assert_same_bits(result, results[0])


CHOSEN = [case for case in CASES if case.name in ("encoder_masked", "rtdetr", "channels_3", "odd_points", "hostile")]


@pytest.mark.parametrize("case", [*WORKLOADS, *CHOSEN], ids=lambda case: case.id)
def test_deterministic_results_are_as_accurate_as_pytorch(make_inputs, op, kernel, dtype, case):
    inputs = make_inputs(op, case, dtype, kernel)
    assert_result_accurate(op, inputs, run_deterministically(op, inputs, kernel), kernel)


def one_large(output: Tensor) -> Tensor:
    """One query whose gradients are 10^6 times the others' (fp16: 10^3)."""
    grad = random_grad_output(output).double()
    grad[0, 3] *= 1e3 if output.dtype == torch.float16 else 1e6
    return grad.to(output)


def tiny(output: Tensor) -> Tensor:
    """As small as gradients get (fp16: near its smallest normal number)."""
    return (random_grad_output(output).double() * (1e-3 if output.dtype == torch.float16 else 1e-30)).to(output)


def huge(output: Tensor) -> Tensor:
    return (random_grad_output(output).double() * (1e3 if output.dtype == torch.float16 else 1e30)).to(output)


@pytest.mark.parametrize("gradients", [one_large, tiny, huge], ids=lambda function: function.__name__)
@pytest.mark.parametrize("case", [ENCODER, DECODER], ids=lambda case: case.id)
def test_gradients_of_any_size_are_as_accurate_as_pytorch(make_inputs, monkeypatch, op, kernel, dtype, case, gradients):
    inputs = make_inputs(op, case, dtype, kernel)
    monkeypatch.setattr(accuracy, "random_grad_output", gradients)
    assert_result_accurate(op, inputs, run_deterministically(op, inputs, kernel), kernel)


@pytest.mark.parametrize("case", [ENCODER, DECODER], ids=lambda case: case.id)
def test_small_gradients_beside_large_ones_lose_no_more_than_the_last_bit_of_the_fixed_point(
    make_inputs, op, kernel, dtype, case
):
    """That bit is 2^-60 of the largest possible sum; a second integer makes float64's far smaller.

    Kernels of small calls have weights of other last bits, so that all are large here.
    """
    inputs = make_inputs(op, case, dtype, kernel)
    with libraries.assume_multiprocessors(1) if kernel == "cuda" else nullcontext():
        grad = random_grad_output(run(op, inputs, kernel).output)
        small = 1e-5 if dtype == torch.float16 else 1e-12
        grad[:, 1::2] = (grad[:, 1::2].double() * small).to(grad)
        result = run_deterministically(op, inputs, kernel, grad).grads["value"].double()
        usual = run(op, inputs, kernel, grad).grads["value"].double()
        magnitudes = run(op, inputs, kernel, grad.abs()).grads["value"].double()
    most_terms = case.queries * case.K
    last_bit = grad.double().abs().max() * most_terms * 2.0 ** (-100 if dtype == torch.float64 else -60)
    compute, info = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32), torch.finfo(dtype)
    allowed = 4 * compute.eps * magnitudes + info.eps * torch.maximum(usual.abs(), usual.new_tensor(info.tiny))
    excess = (result - usual).abs() / (allowed + most_terms * last_bit)
    assert excess.max() <= 1
    assert (result[magnitudes == 0] == 0).all()


BAD = [float("nan"), float("-inf")]
WEIGHTS = {"ms_deform_attn": "attention_weights", "fused_ms_deform_attn": "attention_logits"}


def spoiled(op: str, inputs: dict[str, Any], where: str, bad: float) -> tuple[dict[str, Any], Tensor]:
    """Inputs and grad_output, with one bad number among the gradients or the weights."""
    grad = random_grad_output(run(op, inputs, "reference").output)
    if where == "grad_output":
        grad[0, 5, 40] = bad
        return inputs, grad
    weights = inputs[WEIGHTS[op]].detach().clone()
    weights[0, 5, 1].view(-1)[2] = bad
    return {**inputs, WEIGHTS[op]: weights.requires_grad_()}, grad


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["grad_output", "weights"])
@pytest.mark.parametrize("case", [ENCODER, DECODER], ids=lambda case: case.id)
def test_a_number_that_is_not_finite_spoils_what_it_spoils_in_pytorch(make_inputs, op, kernel, dtype, case, where, bad):
    inputs, grad = spoiled(op, make_inputs(op, case, dtype, kernel), where, bad)
    result = run(op, inputs, kernel, grad).grads["value"]
    expected = run(op, inputs, "reference", grad).grads["value"]
    assert expected.isfinite().any() and torch.equal(result.isfinite(), expected.isfinite())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["grad_output", "weights"])
@pytest.mark.parametrize("case", [ENCODER, DECODER], ids=lambda case: case.id)
def test_deterministic_sums_never_hide_a_number_that_is_not_finite(make_inputs, op, kernel, dtype, case, where, bad):
    """Without a finite bound there is no scale: then every element that was added to is NaN."""
    clean = make_inputs(op, case, dtype, kernel)
    inputs, grad = spoiled(op, clean, where, bad)
    result = run_deterministically(op, inputs, kernel, grad).grads["value"]
    expected = run(op, inputs, "reference", grad).grads["value"]
    if op == "fused_ms_deform_attn" and where == "weights":  # a softmax bounds them
        assert torch.equal(result.isnan(), ~expected.isfinite())
    else:
        touched = magnitudes_of_sums(op, clean, "reference") != 0
        assert result.isnan()[touched].all() and not expected[touched].isfinite().all()
        # NaN again for a corner of weight 0.
        assert ((result == 0) | result.isnan())[~touched].all()
