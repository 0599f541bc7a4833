"""The tolerance rule: the error of a kernel is at most twice that of PyTorch at the same dtype, plus two roundings.

`|kernel - exact| <= 2 |torch - exact| + 2 roundings`, where

- exact is the reference in float64 on the same, already rounded, inputs;
- torch is the reference at the dtype of the inputs;
- a rounding is the change of the exact result when every input is rounded once more in the dtype of the
  computation (float32, or float64 for float64), plus one rounding of the result to its own dtype.

Both sides are compared as a maximum and as a root mean square over a block. Blocks are the output, and each level (and
coordinate) of a gradient: rows of a coarse level sum a thousand terms, those of a fine level ten, and one scale for
both would hide errors in the smaller.

There is no dtype wider than float64, so for float64 torch's error is its float32 error scaled by the ratio of the
epsilons, and `exact` may be as inaccurate as torch: its error is added once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dino_kernels
from dino_kernels.ops._core.dtypes import compute_dtype

FACTOR = 2.0
ROUNDINGS = 2.0
# Their (x, y) are rounded relative to the level, not to their own size: 2 * x - 1 is part of every formula.
POSITIONS = ("sampling_locations", "reference_points")


@dataclass
class Result:
    """The output and gradients of one call; `grads` has the inputs that require a gradient."""

    output: Tensor
    grads: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """Return output and gradients by name."""
        return {"output": self.output} | {f"grad_{name}": grad for name, grad in self.grads.items()}


def run(op: str, inputs: dict[str, Any], backend: str, grad_output: Tensor | None = None) -> Result:
    """Run forward and backward on `backend`, with a fixed pseudo-random `grad_output` by default."""
    output = getattr(dino_kernels, op)(**inputs, backend=backend)
    leaves = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}
    if not leaves:
        return Result(output, {})
    if grad_output is None:
        grad_output = random_grad_output(output)
    grads = torch.autograd.grad(output, list(leaves.values()), grad_output)
    return Result(output.detach(), dict(zip(leaves, grads, strict=True)))


def random_grad_output(output: Tensor) -> Tensor:
    """Return a fixed pseudo-random gradient of an output."""
    generator = torch.Generator().manual_seed(1234)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return grad.to(output.dtype).to(output.device)


def assert_result_accurate(op: str, inputs: dict[str, Any], result: Result, label: str = "kernel") -> None:
    """Assert the tolerance rule of this module, and that exactly the sampled rows of grad_value are not zero.

    Args:
        op: name of the public function.
        inputs: keyword arguments; `result` has the gradients of those that require one.
        result: result of the kernel under test.
        label: name of the kernel in messages.
    """
    inputs = far_outside_where_not_finite(inputs)
    dtype = inputs["value"].dtype
    grad_output = random_grad_output(_output_like(op, inputs))
    exact = run(op, _cast(inputs, torch.float64), "reference", grad_output.double())
    if dtype == torch.float64:
        single = _cast(inputs, torch.float32)
        torch_result = run(op, single, "reference", grad_output.float())
        torch_exact = run(op, _cast(single, torch.float64), "reference", grad_output.float().double())
        scale, own_error = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps, 1.0
    else:
        torch_result, torch_exact, scale, own_error = run(op, inputs, "reference", grad_output), exact, 1.0, 0.0
    rounded = _rounded_inputs(op, inputs, grad_output, compute_dtype(dtype))

    problems = []
    for name, kernel in result.named().items():
        expected, torchs, torchs_expected = exact.named()[name], torch_result.named()[name], torch_exact.named()[name]
        if kernel.shape != expected.shape:
            problems.append(f"{name}: shape {list(kernel.shape)}, expected {list(expected.shape)}")
            continue
        if not expected.isfinite().all():
            raise AssertionError(f"{op}: the exact {name} is not finite; the inputs cannot be compared")
        for where, block in _blocks(name, expected, inputs):
            error = (kernel.double() - expected)[block]
            torch_error = (torchs.double() - torchs_expected)[block] * scale
            moved = [(other.named()[name] - expected)[block] for other in rounded]
            unit = torch.finfo(kernel.dtype).eps / 2
            for norm, measure in (("max", largest), ("rms", rms)):
                rounding = max(measure(change) for change in moved) + unit * measure(expected[block])
                allowed = (FACTOR + own_error) * measure(torch_error) + ROUNDINGS * rounding
                if not measure(error) <= allowed:  # also true for NaN
                    problems.append(
                        f"{name}{where}: {norm} error {measure(error):.3g}, allowed {allowed:.3g} (torch at {dtype} "
                        f"errs {measure(torch_error):.3g}, a rounding is {rounding:.3g}); "
                        + _worst(error, kernel[block])
                    )
                    break
    if "value" in result.grads:
        problems += _unsampled_rows(result.grads["value"], exact.grads["value"])
    if problems:
        raise AssertionError(f"{op} by {label}:\n  " + "\n  ".join(problems))


def far_outside_where_not_finite(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with NaN and infinite positions moved far outside, where no arithmetic yields NaN."""
    cleaned = dict(inputs)
    for name, far in (("sampling_locations", -5.0), ("sampling_offsets", 1e4)):
        if name in inputs:
            tensor = inputs[name].detach()
            cleaned[name] = torch.where(tensor.isfinite(), tensor, far).to(tensor.dtype)
    if "reference_points" in inputs:
        points = inputs["reference_points"].detach()
        broken = ~points.isfinite().all(-1, keepdim=True)
        elsewhere = points.new_tensor([50.0, 50.0, 0.1, 0.1])[: points.shape[-1]]
        cleaned["reference_points"] = torch.where(broken, elsewhere, points)
    for name, tensor in cleaned.items():
        if isinstance(tensor, Tensor):
            cleaned[name] = tensor.detach().requires_grad_(inputs[name].requires_grad)
    return cleaned


def _output_like(op: str, inputs: dict[str, Any]) -> Tensor:
    value = inputs["value"]
    samples = inputs["sampling_locations" if op == "ms_deform_attn" else "sampling_offsets"]
    return value.detach().new_empty(value.shape[0], samples.shape[1], value.shape[2] * value.shape[3])


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: argument.detach().to(dtype).requires_grad_(argument.requires_grad)
        if isinstance(argument, Tensor) and argument.is_floating_point()
        else argument
        for name, argument in inputs.items()
    }


def _rounded_inputs(op: str, inputs: dict[str, Any], grad_output: Tensor, compute: torch.dtype) -> list[Result]:
    """Return exact results after moving every input by half an epsilon of `compute`, up or down at random.

    Small tensors get several draws, because one may happen to change little.
    """
    generator = torch.Generator().manual_seed(4321)
    half = torch.finfo(compute).eps / 2

    def moved(name: str, tensor: Tensor) -> Tensor:
        scale = tensor.detach().double().abs().nan_to_num(posinf=0.0)  # infinities stay unchanged
        if name in POSITIONS:
            scale[..., :2] = scale[..., :2].clamp_min(1.0)
        sign = torch.randint(0, 2, tensor.shape, generator=generator).to(scale) * 2 - 1
        return (tensor.detach().double() + half * scale * sign).requires_grad_(tensor.requires_grad)

    results = []
    for _ in range(max(1, min(6, 2**14 // max(1, grad_output.numel())))):
        near = {
            name: moved(name, argument) if isinstance(argument, Tensor) and argument.is_floating_point() else argument
            for name, argument in inputs.items()
        }
        results.append(run(op, near, "reference", moved("grad_output", grad_output).detach()))
    return results


def _blocks(name: str, tensor: Tensor, inputs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a result that are compared on one scale: (name in messages, index)."""
    shapes = inputs["spatial_shapes"]
    shapes = shapes.tolist() if isinstance(shapes, Tensor) else list(shapes)
    if name == "output":
        yield "", ...
        return
    if name == "grad_value":
        starts = inputs.get("level_start_index")
        start = 0
        for level, (height, width) in enumerate(shapes):
            start = start if starts is None else int(starts[level])
            yield f" level {level}", (slice(None), slice(start, start + height * width))
            start += height * width
        return
    coordinates = [(f" {axis}", index) for index, axis in enumerate("xywh")]
    if name == "grad_reference_points":
        for level in range(tensor.shape[2]):
            for axis, index in coordinates[: tensor.shape[3]]:
                yield f" level {level}{axis}", (slice(None), slice(None), level, index)
        return
    points = inputs.get("num_points") or [tensor.shape[4]] * len(shapes)
    has_levels = inputs.get("num_points") is None or tensor.dim() == (6 if "weights" not in name else 5)
    axes = coordinates[:2] if name in ("grad_sampling_locations", "grad_sampling_offsets") else [("", ...)]
    start = 0
    for level, count in enumerate(points):
        samples = level if has_levels else slice(start, start + count)
        start += count
        for axis, index in axes:
            rest = (..., index) if index is not ... else (...,)
            yield f" level {level}{axis}", (slice(None), slice(None), slice(None), samples, *rest)


def largest(tensor: Tensor) -> float:
    """Return the largest magnitude; 0 for an empty tensor."""
    return tensor.abs().max().item() if tensor.numel() else 0.0


def rms(tensor: Tensor) -> float:
    """Return the root mean square; 0 for an empty tensor."""
    return tensor.square().mean().sqrt().item() if tensor.numel() else 0.0


def _worst(error: Tensor, kernel: Tensor) -> str:
    magnitude = error.abs().nan_to_num(nan=torch.inf)
    index = [int(i) for i in torch.unravel_index(magnitude.argmax(), magnitude.shape)]
    got = kernel[tuple(index)].item()
    return f"worst at {index} of the block: got {got:.6g}, exact {got - error[tuple(index)].item():.6g}"


def _unsampled_rows(grad_value: Tensor, exact: Tensor) -> list[str]:
    """Find rows without samples whose gradient is not exactly zero, and rows with samples whose gradient is."""
    got, touched = (grad_value != 0).any(-1), (exact != 0).any(-1)
    # In 16 bit a small gradient may round to zero.
    certain = exact.abs().amax(-1) > torch.finfo(grad_value.dtype).tiny * 4 if exact.shape[-1] else touched
    problems = []
    if (got & ~touched).any():
        problems.append(f"grad_value: {int((got & ~touched).sum())} rows that no sample touches are not zero")
    if (certain & ~got).any():
        problems.append(f"grad_value: {int((certain & ~got).sum())} sampled rows have no gradient")
    return problems
