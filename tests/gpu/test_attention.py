"""Properties that need a GPU: no call synchronises, calls keep to their stream, and CUDA graphs replay them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dino_kernels
from dino_kernels.testing import Case, random_grad_output, run

ENCODER = Case("encoder", 2, 411, 8, 32, ((14, 20), (7, 10), (4, 5), (3, 7)), (4, 4, 4, 4), layout="local", mask=True)
DECODER = Case("decoder", 1, 97, 8, 32, ((14, 20), (7, 10), (4, 5), (2, 3)), (4, 4, 4, 4), reference_coordinates=4)
ON_GPU = pytest.mark.parametrize("kernel", ["cuda", "triton"])
CASES = pytest.mark.parametrize("case", [ENCODER, DECODER], ids=lambda case: case.id)


def forward_backward(op: str, inputs: dict[str, Any], kernel: str, grad_output: torch.Tensor) -> list[torch.Tensor]:
    output = getattr(dino_kernels, op)(**inputs, backend=kernel)
    differentiated = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    return [output, *torch.autograd.grad(output, differentiated, grad_output)]


@ON_GPU
@CASES
@pytest.mark.parametrize("table", ["tensor", "list"])
@pytest.mark.parametrize("mode", ["default", "deterministic"])
def test_no_call_waits_for_the_device(make_inputs, waiting_is_an_error, op, kernel, case, table, mode):
    inputs = make_inputs(op, case, torch.bfloat16, kernel)
    if table == "list":
        inputs |= {"spatial_shapes": list(case.shapes), "level_start_index": None}
    grad_output = random_grad_output(getattr(dino_kernels, op)(**inputs, backend=kernel).detach())
    torch.use_deterministic_algorithms(mode == "deterministic")
    try:
        forward_backward(op, inputs, kernel, grad_output)
        waiting_is_an_error()
        forward_backward(op, inputs, kernel, grad_output)
    finally:
        torch.use_deterministic_algorithms(False)


@ON_GPU
@CASES
def test_a_captured_call_replays_with_new_numbers(make_inputs, deterministic, op, kernel, case):
    inputs = make_inputs(op, case, torch.float32, kernel)
    grad_output = random_grad_output(getattr(dino_kernels, op)(**inputs, backend=kernel).detach())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward_backward(op, inputs, kernel, grad_output)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_backward(op, inputs, kernel, grad_output)
    other = make_inputs(op, case, torch.float32, kernel, seed=7)
    with torch.no_grad():
        for name, argument in inputs.items():
            if isinstance(argument, torch.Tensor) and argument.requires_grad:
                argument.copy_(other[name])
    graph.replay()
    expected = run(op, other, kernel, grad_output)
    for got, wanted in zip(captured, expected.named().values(), strict=True):
        assert torch.equal(got, wanted)


@ON_GPU
def test_a_call_keeps_to_the_current_stream(make_inputs, op, kernel):
    inputs = make_inputs(op, ENCODER, torch.float32, kernel)
    expected = run(op, inputs, kernel).output
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        value = torch.zeros_like(inputs["value"])
        torch.cuda._sleep(50_000_000)  # a call on another stream would still see the zeros
        value.copy_(inputs["value"])
        output = getattr(dino_kernels, op)(**{**inputs, "value": value}, backend=kernel)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(output, expected)


@ON_GPU
def test_a_second_gpu_runs_calls_on_its_own_tensors(make_inputs, op, kernel):
    inputs = make_inputs(op, DECODER, torch.float32, kernel)
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    moved = {name: x.detach().to("cuda:1") if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    output = getattr(dino_kernels, op)(**moved, backend=kernel)
    assert torch.equal(output.cpu(), run(op, inputs, kernel).output.cpu())


@ON_GPU
def test_a_table_that_does_not_fit_value_ends_with_a_device_assertion_or_nan(make_inputs, run_python, op, kernel):
    """In a process of its own: a device assertion ends the CUDA context."""
    make_inputs(op, DECODER, torch.float32, kernel)
    program = """if True:
        import sys, torch
        import dino_kernels
        from dino_kernels.testing import Case, sample_inputs
        op, kernel = sys.argv[1:]
        inputs = sample_inputs(op, Case("wrong", 1, 9, 2, 32, ((3, 4), (2, 2)), (2, 2)), torch.float32, "cuda")
        inputs["spatial_shapes"] = inputs["spatial_shapes"] * 2
        try:
            output = getattr(dino_kernels, op)(**inputs, backend=kernel)
            print("nan" if output.isnan().all() else "computed")
        except RuntimeError:
            print("refused")
    """
    assert {"cuda": "refused", "triton": "nan"}[kernel] in run_python(program, op, kernel)
