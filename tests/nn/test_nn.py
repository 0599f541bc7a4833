"""`MSDeformAttn` computes the same as the original."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_kernels import UnsupportedError
from dino_kernels.nn import MSDeformAttn

SHAPES = ((9, 11), (5, 6), (2, 3))
ROWS = sum(height * width for height, width in SHAPES)


def trained(seed: int = 0, **options: Any) -> MSDeformAttn:
    """Return a module in which every parameter matters."""
    torch.manual_seed(seed)
    module = MSDeformAttn(32, n_levels=3, n_heads=4, **{"n_points": 2, **options})
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def inputs(coordinates: int = 2, queries: int = 13) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "query": torch.randn(2, queries, 32, generator=generator),
        "reference_points": torch.rand(2, queries, 3, coordinates, generator=generator),
        "input_flatten": torch.randn(2, ROWS, 32, generator=generator),
        "input_spatial_shapes": torch.tensor(SHAPES),
        "input_level_start_index": torch.tensor([0, 99, 129]),
        "input_padding_mask": torch.rand(2, ROWS, generator=generator) < 0.2,
    }


def original_forward(state: dict[str, Tensor], heads: int, points: int, arguments: dict[str, Any]) -> Tensor:
    """Deformable DETR's module and `ms_deform_attn_core_pytorch`, written from their formulas."""
    query, reference, source, shapes, _, mask = arguments.values()
    (batch, queries, channels), rows, levels = query.shape, source.shape[1], len(shapes)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    value = linear("value_proj", source)
    if mask is not None:
        value = value.masked_fill(mask[..., None], 0.0)
    value = value.view(batch, rows, heads, -1)
    channels = heads * value.shape[3]
    offsets = linear("sampling_offsets", query).view(batch, queries, heads, levels, points, 2)
    weights = linear("attention_weights", query).view(batch, queries, heads, levels * points).softmax(-1)
    weights = weights.view(batch, queries, heads, levels, points)
    if reference.shape[-1] == 2:
        sizes = torch.stack([shapes[:, 1], shapes[:, 0]], -1)
        locations = reference[:, :, None, :, None] + offsets / sizes[:, None]
    else:
        locations = reference[:, :, None, :, None, :2] + offsets / points * reference[:, :, None, :, None, 2:] * 0.5
    output = query.new_zeros(batch, queries, heads, channels // heads)
    for level, image in enumerate(value.split([int(h) * int(w) for h, w in shapes], dim=1)):
        image = image.permute(0, 2, 3, 1).reshape(batch * heads, -1, *shapes[level].tolist())
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)  # [B * M, D, Q, P]
        sampled = sampled.view(batch, heads, channels // heads, queries, points)
        output += torch.einsum("bmdqp,bqmp->bqmd", sampled, weights[:, :, :, level])
    return linear("output_proj", output.flatten(2))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no_mask"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_forward_and_gradients_equal_the_original(backend, masked, coordinates):
    module, arguments = trained(backend=backend), inputs(coordinates)
    if not masked:
        arguments["input_padding_mask"] = None
    for name in ("query", "reference_points", "input_flatten"):
        arguments[name].requires_grad_()
    state = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    output, expected = module(**arguments), original_forward(state, 4, 2, arguments)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    differentiated = [arguments[name] for name in ("query", "reference_points", "input_flatten")]
    got = torch.autograd.grad(output, [*module.parameters(), *differentiated], grad)
    expected_grads = torch.autograd.grad(expected, [*state.values(), *differentiated], grad)
    for name, mine, theirs in zip([*state, "query", "reference_points", "source"], got, expected_grads, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(
            mine, theirs, rtol=1e-3, atol=1e-4 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_padding_is_masked_after_the_projection():
    """Masked rows count as zero, not as the bias of value_proj, whatever they contain."""
    module, arguments = trained(), inputs()
    expected = module(**arguments)
    mask = arguments["input_padding_mask"]
    dirty = {**arguments, "input_flatten": arguments["input_flatten"].masked_fill(mask[..., None], float("nan"))}
    torch.testing.assert_close(module(**dirty), expected)
    before = {**arguments, "input_flatten": arguments["input_flatten"].masked_fill(mask[..., None], 0)}
    before["input_padding_mask"] = None
    assert (module(**before) - expected).abs().max() > 1e-2


def test_the_mask_is_true_on_padding():
    module, arguments = trained(), inputs()
    arguments["input_padding_mask"] = torch.ones(2, ROWS, dtype=torch.bool)
    torch.testing.assert_close(module(**arguments), module.output_proj.bias.expand(2, 13, -1))


@pytest.mark.parametrize("shapes", [list(SHAPES), torch.tensor(SHAPES, dtype=torch.int32)], ids=["list", "int32"])
@pytest.mark.parametrize("starts", [None, torch.tensor([0, 99, 129])], ids=["no_starts", "starts"])
def test_level_tables_of_any_form(shapes, starts):
    module, arguments = trained(), inputs()
    other = {**arguments, "input_spatial_shapes": shapes, "input_level_start_index": starts}
    assert torch.equal(module(**other), module(**arguments))


def test_arguments_may_come_by_position_and_the_mask_may_be_left_out():
    module, arguments = trained(), inputs()
    *positional, _ = arguments.values()
    assert torch.equal(module(*positional), module(**{**arguments, "input_padding_mask": None}))


def test_hooks_on_the_query_layers_are_called():
    for layer in ("sampling_offsets", "attention_weights"):
        for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
            module, arguments = trained(), inputs()
            called: list[str] = []
            arguments["query"].requires_grad_()
            getattr(module.get_submodule(layer), register)(lambda *_, called=called: called.append("yes") or None)
            module(**arguments).sum().backward()
            assert called, f"{layer}.{register}"


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("layer", ["sampling_offsets", "attention_weights", "value_proj", "output_proj"])
def test_replaced_layers_are_respected(layer):
    """LoRA and quantisation put other modules in place of nn.Linear."""
    module, arguments = trained(), inputs()
    reference = trained()
    plain = getattr(module, layer)
    doubled = Doubled(plain.in_features, plain.out_features)
    doubled.load_state_dict(plain.state_dict())
    setattr(module, layer, doubled)
    with torch.no_grad():
        for parameter in reference.get_submodule(layer).parameters():
            parameter *= 2
    torch.testing.assert_close(module(**arguments), reference(**arguments), rtol=1e-4, atol=1e-5)


def test_frozen_layers_get_no_gradient_and_the_others_do():
    module, arguments = trained(), inputs()
    module.sampling_offsets.requires_grad_(False)
    module(**arguments).sum().backward()
    missing = {name for name, p in module.named_parameters() if p.grad is None}
    assert missing == {"sampling_offsets.weight", "sampling_offsets.bias"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles_compute_the_same_and_are_independent(duplicate):
    module, arguments = trained(), inputs()
    twin = duplicate(module)
    assert torch.equal(twin(**arguments), module(**arguments))
    nn.init.zeros_(twin.output_proj.weight)
    assert not torch.equal(twin(**arguments), module(**arguments))


def test_a_state_dict_loads_strictly_into_a_fresh_module(tmp_path):
    module, arguments = trained(), inputs()
    torch.save(module.state_dict(), tmp_path / "layer.pt")
    fresh = MSDeformAttn(32, 3, 4, 2)
    fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True), strict=True)
    assert torch.equal(fresh(**arguments), module(**arguments))


def test_point_counts_may_differ_by_level():
    module = trained(n_points=[2, 3, 1])
    assert module.sampling_offsets.out_features == 4 * 6 * 2
    assert module(**inputs(4)).shape == (2, 13, 32)
    even = trained(n_points=[2, 2, 2])
    even.load_state_dict(trained().state_dict())
    assert torch.equal(even(**inputs()), trained()(**inputs()))
    bias = MSDeformAttn(8, 2, 1, [1, 3]).sampling_offsets.bias.view(4, 2)
    torch.testing.assert_close(bias.detach(), torch.tensor([[1.0, 0], [1, 0], [2, 0], [3, 0]]))


def test_the_backend_of_a_module_is_chosen_at_construction():
    module, arguments = trained(), inputs()
    reference = trained(backend="reference")
    torch.testing.assert_close(module(**arguments), reference(**arguments), rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedError, match="backend 'cuda' cannot run this call"):
        trained(backend="cuda")(**arguments)


def test_repr_shows_the_sizes():
    expected = "MSDeformAttn(\n  d_model=32, n_levels=3, n_heads=4, n_points=2\n  (sampling_offsets): Linear"
    assert repr(trained()).startswith(expected)


@pytest.mark.parametrize(("batch", "queries"), [(2, 0), (0, 5), (1, 1)])
def test_empty_and_single_queries(batch, queries):
    arguments = {
        "query": torch.randn(batch, queries, 32),
        "reference_points": torch.rand(batch, queries, 3, 2),
        "input_flatten": torch.randn(batch, ROWS, 32),
        "input_spatial_shapes": torch.tensor(SHAPES),
    }
    output = trained()(**arguments)
    assert output.shape == (batch, queries, 32)
    output.sum().backward()


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_the_module_of_vit_adapter_has_other_channels_of_values(ratio: float, coordinates: int) -> None:
    """Its fifth argument; names, order and shapes of parameters are those of its module."""
    torch.manual_seed(0)
    module = MSDeformAttn(32, 3, 4, 2, ratio)
    inner = int(32 * ratio)
    assert {name: list(parameter.shape) for name, parameter in module.named_parameters()} == {
        "sampling_offsets.weight": [48, 32], "sampling_offsets.bias": [48],
        "attention_weights.weight": [24, 32], "attention_weights.bias": [24],
        "value_proj.weight": [inner, 32], "value_proj.bias": [inner],
        "output_proj.weight": [32, inner], "output_proj.bias": [32],
    }  # fmt: skip
    module._reset_parameters()  # as ViT-Adapter and Deformable-DETR call it
    assert (
        not module.attention_weights.weight.any()
        and module.ratio == ratio
        and ("ratio" in repr(module)) == (ratio != 1)
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    given = inputs(coordinates)
    torch.testing.assert_close(
        module(**given), original_forward(dict(module.named_parameters()), 4, 2, given), rtol=1e-4, atol=1e-5
    )
