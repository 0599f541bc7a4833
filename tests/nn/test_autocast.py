"""Under autocast the module runs in the autocast dtype, positions stay float32, and gradients reach float32 weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dino_kernels
from dino_kernels.nn import MSDeformAttn
from dino_kernels.ops._core.dispatch import ops

SHAPES = ((13, 167), (7, 84))
LEVELS = torch.tensor(SHAPES)
ROWS = sum(height * width for height, width in SHAPES)


def module_inputs(coordinates: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(11)
    points = torch.rand(2, 33, 2, coordinates, generator=generator)
    points[..., 2:] *= 0.2  # in a larger box one 16-bit offset step would be more than a pixel
    return {
        "query": torch.randn(2, 33, 32, generator=generator),
        "reference_points": points,
        "input_flatten": torch.randn(2, ROWS, 32, generator=generator),
        "input_spatial_shapes": LEVELS,
        "input_level_start_index": torch.tensor([0, 13 * 167]),
        "input_padding_mask": torch.rand(2, ROWS, generator=generator) < 0.1,
    }


def trained(backend: str = "auto") -> MSDeformAttn:
    torch.manual_seed(5)
    module = MSDeformAttn(32, n_levels=2, n_heads=4, n_points=4, backend=backend)
    for layer in (module.sampling_offsets, module.attention_weights):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return module


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_module_stays_close_to_float32(backend, dtype, coordinates):
    module, inputs = trained(backend), module_inputs(coordinates)
    expected = module(**inputs)
    with torch.autocast("cpu", dtype):
        output = module(**inputs)
    assert output.dtype == dtype
    scale = expected.abs().max()
    assert (output.float() - expected).abs().max() < 0.05 * scale
    assert (output.float() - expected).abs().mean() < 0.005 * scale


def test_autocast_through_the_kernel_is_as_accurate_as_through_the_reference():
    inputs = module_inputs()
    expected = trained("reference")(**inputs)
    errors = {}
    for backend in ("auto", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            errors[backend] = (trained(backend)(**inputs).float() - expected).square().mean().sqrt()
    assert errors["auto"] <= 1.05 * errors["reference"]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients_of_every_parameter_are_float32_and_close(backend):
    module, inputs = trained(backend), module_inputs()
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(module(**inputs).square().sum(), list(parameters.values()))
    with torch.autocast("cpu", torch.bfloat16):
        output = module(**inputs)
    grads = torch.autograd.grad(output.float().square().sum(), list(parameters.values()))
    for name, grad, wanted in zip(parameters, grads, expected, strict=True):
        assert grad.dtype == torch.float32, name
        cosine = torch.cosine_similarity(grad.flatten(), wanted.flatten(), dim=0)
        assert cosine > 0.95, f"{name}: {cosine}"  # offsets that cross a pixel centre change their gradient


def test_the_kernel_sees_16_bit_values_and_float32_positions(monkeypatch):
    seen: dict[str, Any] = {}

    def spy(*arguments: Any, **options: Any) -> Tensor:
        prepared: Any = ops()["fused_ms_deform_attn"].prepare(*arguments, num_points=options["num_points"])
        seen.update({name: x.dtype for name, x in prepared._asdict().items() if isinstance(x, Tensor)})
        return dino_kernels.fused_ms_deform_attn(*arguments, **options)

    monkeypatch.setattr("dino_kernels.nn.ms_deform_attn.fused_ms_deform_attn", spy)
    with torch.autocast("cpu", torch.bfloat16):
        trained()(**module_inputs())
    assert seen["value"] == seen["sampling_offsets"] == seen["attention_logits"] == torch.bfloat16
    assert seen["reference_points"] == torch.float32


def test_reference_points_on_fine_grids_survive_autocast():
    """bfloat16 reference points would move a sample by up to half a pixel at width 167; float32 ones do not move."""
    module = trained()
    inputs = module_inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        exact = module(**inputs).float()
        coarse = module(**{**inputs, "reference_points": inputs["reference_points"].bfloat16()}).float()
        wide = module.float()(**inputs).float()
    assert torch.equal(exact, wide)
    assert (exact - coarse).abs().max() > 0.05 * exact.abs().max()


def test_a_module_in_bfloat16_runs_without_autocast():
    module, inputs = trained(), module_inputs()
    expected = module(**inputs)
    half = {name: x.bfloat16() if name in ("query", "input_flatten") else x for name, x in inputs.items()}
    output = module.bfloat16()(**half)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()
