"""Each deformable attention class of `transformers` computes the same, with every argument it takes; how `replace`
and `restore` treat a model."""

import copy
import importlib
import inspect
import pickle
import pkgutil
import re
from types import SimpleNamespace

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from dino_kernels import UnsupportedError
from dino_kernels.integrations import transformers as integration
from dino_kernels.integrations.returned_weights import ReturnedWeights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SHAPES = [(6, 8), (3, 4), (2, 2)]
DETR = "DeformableDetrMultiscaleDeformableAttention"
ROWS = sum(height * width for height, width in SHAPES)
BOXES_ONLY = ("RTDetrV2", "DFine", "Deimv2")  # of these, transformers itself accepts no 2-coordinate references
PADDING_MASK = ("Mask2Former", "OneFormer")
NO_MASK = ("DFine", "Deimv2")  # their mask does not broadcast to the value
CASES = [(name, 4) for name in integration.CONVENTIONS]
CASES += [(name, 2) for name in integration.CONVENTIONS if not name.startswith(BOXES_ONLY)]


def find(name):
    """The class of that name in transformers.models, found through the model folders whose name it begins with."""
    lower = name.lower()
    for folder in pkgutil.iter_modules(importlib.import_module("transformers.models").__path__):
        if lower.startswith(folder.name.replace("_", "")):
            module = importlib.import_module(f"transformers.models.{folder.name}.modeling_{folder.name}")
            if hasattr(module, name):
                return getattr(module, name)
    pytest.skip(f"transformers {transformers.__version__} has no {name}")


def build(name, offset_scale=0.5):
    cls = find(name)
    config = SimpleNamespace(
        d_model=64,
        num_feature_levels=3,
        decoder_n_levels=3,
        decoder_attention_heads=4,
        decoder_n_points=[2, 4, 2] if name.startswith(NO_MASK) else 4,
        decoder_offset_scale=offset_scale,
        decoder_method="default",
        disable_custom_kernels=True,
    )
    options = {"config": config, "num_heads": 4, "n_points": 4, "embed_dim": 64, "n_levels": 3}
    taken = inspect.signature(cls.__init__).parameters
    module = cls(**{key: value for key, value in options.items() if key in taken}).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return module


def arguments(name, coordinates):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    shapes = torch.tensor(SHAPES)
    sizes = shapes.prod(1)
    levels = 1 if name.startswith(BOXES_ONLY) else 3
    inputs = {
        "hidden_states": normal(2, 10, 64),
        "encoder_hidden_states": normal(2, ROWS, 64),
        "position_embeddings": normal(2, 10, 64),
        "reference_points": normal(2, 10, levels, coordinates).detach().sigmoid().requires_grad_(),
        "spatial_shapes": shapes,
        "spatial_shapes_list": SHAPES,
        "level_start_index": sizes.cumsum(0) - sizes,
    }
    if not name.startswith(NO_MASK):
        valid = torch.rand(2, ROWS, generator=generator) < 0.7
        inputs["attention_mask"] = ~valid if name.startswith(PADDING_MASK) else valid
    if name.startswith("Mask2Former"):
        del inputs["spatial_shapes"]
    return inputs


def run(module, inputs):
    output, weights = module(**inputs)
    leaves = [*module.parameters(), *(x for x in inputs.values() if torch.is_tensor(x) and x.requires_grad)]
    loss = output.square().sum() + weights.square().sum()
    return [output.detach(), weights.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True)]


@pytest.mark.parametrize(("name", "coordinates"), CASES, ids=lambda value: re.sub("Multiscale.*", "", str(value)))
def test_output_weights_and_gradients_are_the_same(name, coordinates):
    module = build(name)
    inputs = arguments(name, coordinates)
    theirs = run(module, inputs)
    assert integration.replace(module) == [""]
    for ours, expected in zip(run(module, inputs), theirs, strict=True):
        assert (ours is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in integration.CONVENTIONS if name.startswith(BOXES_ONLY)])
def test_offset_scale_is_honoured(name):
    module = build(name, offset_scale=0.3)
    inputs = arguments(name, 4)
    theirs, _ = module(**inputs)
    integration.replace(module)
    torch.testing.assert_close(module(**inputs)[0], theirs, rtol=1e-10, atol=1e-10)


def test_bfloat16_results_have_the_dtype_of_transformers():
    module = build(DETR).bfloat16()
    inputs = {
        key: value.bfloat16() if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in arguments(DETR, 2).items()
    }
    output, weights = module(**inputs)
    integration.replace(module)
    ours, our_weights = module(**inputs)
    assert ours.dtype == output.dtype and our_weights.dtype == weights.dtype
    torch.testing.assert_close(our_weights, weights)


def test_hooks_on_the_module_and_its_projections_still_run():
    module = build(DETR)
    seen = []
    module.register_forward_hook(lambda *_: seen.append("module"))
    module.sampling_offsets.register_forward_hook(lambda *_: seen.append("offsets"))
    integration.replace(module)
    module(**arguments(DETR, 2))
    assert seen == ["offsets", "module"]


def test_torch_compile_traces_a_replaced_module_in_one_graph():
    module = build(DETR)
    integration.replace(module)
    inputs = arguments(DETR, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs)[0], module(**inputs)[0], rtol=1e-10, atol=1e-10)


def model_of(*names):
    return nn.ModuleDict({f"layer{i}": nn.ModuleList([nn.Identity(), build(name)]) for i, name in enumerate(names)})


@pytest.mark.parametrize("name", ["RTDetrV2MultiscaleDeformableAttention", "DFineMultiscaleDeformableAttention"])
def test_discrete_sampling_is_left_to_transformers(name):
    model = model_of(name, name)
    attribute = "method" if name.startswith("RTDetr") else "decoder_method"
    setattr(model.get_submodule("layer0.1"), attribute, "discrete")
    assert integration.replace(model) == ["layer1.1"]
    integration.restore(model)
    setattr(model.get_submodule("layer1.1"), attribute, "discrete")
    with pytest.raises(ValueError, match=r"layer1.1 has method='discrete'"):
        integration.replace(model)


def test_replace_keeps_the_parameters_and_restore_gives_back_the_class():
    model = model_of(DETR, DETR)
    attention = model.get_submodule("layer0.1")
    original, before, keys = type(attention), dict(model.named_parameters()), model.state_dict().keys()
    attributes = set(vars(attention))
    names = integration.replace(model)
    assert names == ["layer0.1", "layer1.1"] == integration.replace(model)
    assert isinstance(attention, original) and type(attention) is not original
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert model.state_dict().keys() == keys
    assert integration.restore(model) == names and integration.restore(model) == []
    assert type(attention) is original and set(vars(attention)) == attributes


def test_other_models_of_the_process_are_untouched():
    first, second = build(DETR), build(DETR)
    integration.replace(first)
    assert integration.restore(second) == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", [DETR, "DFineMultiscaleDeformableAttention"])
def test_a_replaced_module_can_be_copied(name, duplicate):
    module = build(name)
    integration.replace(module, backend="reference")
    twin = duplicate(module)
    inputs = arguments(name, 4)
    torch.testing.assert_close(twin(**inputs), module(**inputs), rtol=0, atol=0)
    assert type(twin) is type(module) and twin.dino_kernels_backend == "reference"
    assert twin.sampling_offsets.weight is not module.sampling_offsets.weight
    assert integration.restore(twin) == [""] and isinstance(module, integration._Fused)


def test_the_backend_is_passed_on():
    module = build(DETR)
    integration.replace(module, backend="triton")
    with pytest.raises(UnsupportedError, match="backend 'triton' cannot run this call"):
        module(**arguments(DETR, 2))


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        ("replace", ("detr",), TypeError, "replace: model must be a torch.nn.Module, got 'detr'. Load it first: Auto"),
        ("replace", (None,), TypeError, "replace: model must be a torch.nn.Module, got None."),
        ("replace", (nn.Linear,), TypeError, "replace: model must be a torch.nn.Module, got <class 'torch.nn"),
        ("replace", (nn.Linear(1, 1), "gpu"), ValueError, "replace: backend must be one of 'auto', .* got 'gpu'"),
        ("replace", (nn.Linear(1, 1), ["cpu"]), ValueError, r"replace: backend must be one of .* got \['cpu'\]"),
        ("restore", ("detr",), TypeError, "restore: model must be a torch.nn.Module, got 'detr'. Load it first: Auto"),
    ],
)
def test_a_wrong_argument_is_named(function, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(integration, function)(*arguments)


def gradient_of_weights(module, inputs, way):
    """The gradient of the output, and of the returned weights alone, with respect to the weights."""
    output, weights = module(**inputs)
    loss = (output * torch.arange(output.numel(), dtype=output.dtype).view_as(output).sin()).sum()
    if way == "grad":
        return torch.autograd.grad(loss, weights)[0]
    weights.retain_grad()
    if way == "hook":
        seen = []
        weights.register_hook(seen.append)
        loss.backward()
        return seen[0]
    (loss + weights.square().sum() if way == "both" else loss).backward()
    return weights.grad


@pytest.mark.parametrize("way", ["retain", "grad", "hook", "both"])
@pytest.mark.parametrize("name", integration.CONVENTIONS)
def test_the_returned_weights_have_the_gradient_of_transformers(name, way):
    module = build(name)
    theirs = gradient_of_weights(module, arguments(name, 4), way)
    integration.replace(module)
    ours = gradient_of_weights(module, arguments(name, 4), way)
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_weights_of_zero_have_a_finite_gradient():
    module = build(DETR)
    module.attention_weights.bias.data[::2] = -1e4
    theirs = gradient_of_weights(module, arguments(DETR, 2), "retain")
    integration.replace(module)
    ours = gradient_of_weights(module, arguments(DETR, 2), "retain")
    positive = module(**arguments(DETR, 2))[1] > 0
    assert ours.isfinite().all() and 0 < positive.sum() < positive.numel()
    torch.testing.assert_close(ours[positive], theirs[positive], rtol=1e-9, atol=1e-9)


def test_weights_that_nobody_holds_cost_nothing(monkeypatch):
    module = build(DETR)
    integration.replace(module)
    inputs, seen = arguments(DETR, 2), []
    multiply = ReturnedWeights.multiply
    monkeypatch.setattr(ReturnedWeights, "multiply", lambda *given: seen.append(1) or multiply(*given))
    module(**inputs)[0].sum().backward()
    dropped = module.attention_weights.weight.grad.clone()
    assert not seen
    module.zero_grad()
    output, weights = module(**inputs)
    output.sum().backward()
    assert seen and weights.requires_grad
    torch.testing.assert_close(module.attention_weights.weight.grad, dropped, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert module(**inputs)[0].grad_fn is None


def test_a_checkpointed_module_has_the_gradient_of_its_weights():
    module = build(DETR)
    integration.replace(module)
    inputs = arguments(DETR, 2)
    expected = gradient_of_weights(module, inputs, "retain")
    found = gradient_of_weights(
        lambda **given: torch.utils.checkpoint.checkpoint(module, **given, use_reentrant=False), inputs, "retain"
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_second_derivatives_by_the_reference_are_those_of_transformers():
    module = build(DETR)

    def second():
        inputs = arguments(DETR, 2)
        output, weights = module(**inputs)
        (first,) = torch.autograd.grad(output.sin().sum(), inputs["hidden_states"], create_graph=True)
        assert weights.requires_grad
        return torch.autograd.grad(first.square().sum(), inputs["hidden_states"])[0]

    theirs = second()
    integration.replace(module, backend="reference")
    torch.testing.assert_close(second(), theirs, rtol=1e-8, atol=1e-8)


def test_a_model_without_deformable_attention_is_refused():
    with pytest.raises(ValueError, match="Linear contains none of DeformableDetr"):
        integration.replace(nn.Linear(2, 2))


def test_a_subclass_with_its_own_forward_is_not_mistaken_for_its_base():
    module = build(DETR)
    module.__class__ = type("Mine", (type(module),), {"__module__": __name__})
    with pytest.raises(ValueError, match="no deformable attention"):
        integration.replace(module)


def test_an_overridden_forward_is_refused():
    model = model_of(DETR)
    attention = model.get_submodule("layer0.1")
    attention.forward = attention.forward
    with pytest.raises(ValueError, match=r"layer0\.1.*overridden on the instance"):
        integration.replace(model)
