"""The small model against stored outputs of the official one: every intermediate, loss, match and gradient.

Tolerances are those that the stored files suggest for float32 kernels, or tighter where a known mistake would pass them
(three to ten times the official code's own noise).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dino
from dino.model.criterion import Losses
from dino.model.encoder import encoder_reference_points, flatten_levels
from dino.model.position import image_position
from dino.model.query_selection import token_proposals
from dino_kernels import PackedTargets, pairs_of
from tests.dino.model import parity
from tests.dino.model.parity import CASES, TrainingCase, error, fill, sample

FEATURES, MEMORY, STATES, LOGITS, BOXES, PIXELS = 1e-4, 5e-5, 3e-5, 3e-5, 5e-6, 5e-3


@pytest.fixture(scope="module")
def model() -> dino.DINO:
    return parity.filled_model()


@pytest.fixture(scope="module")
def stored() -> dict:
    return parity.load("small_eval")


Forward = Callable[[str], tuple[TrainingCase, dino.DetectionOutput, Losses, Tensor]]


@pytest.fixture(scope="module")
def forward(model: dino.DINO) -> Forward:
    """Return a stored step by the name of its case, and output, losses and total of the model."""

    @functools.cache
    def run(case: str) -> tuple[TrainingCase, dino.DetectionOutput, Losses, Tensor]:
        step = TrainingCase.load(case)
        with torch.no_grad():
            return step, *step.run(model)

    return run


class Recorder:
    """Records the inputs and outputs of each module's first call, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: dict[str, tuple] = {}
        self.outputs: dict[str, object] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def record(_module: nn.Module, inputs: tuple, output: object) -> None:
            self.inputs.setdefault(name, inputs)
            self.outputs.setdefault(name, output)

        return record


@pytest.fixture(scope="module")
def evaluated() -> tuple[Recorder, dino.DetectionOutput]:
    """Run a fresh model once in eval mode, with every module recorded."""
    model = parity.filled_model().eval()
    recorder = Recorder(model)
    with torch.no_grad():
        outputs = model(*parity.images())
    return recorder, outputs


def test_weights_and_images_are_the_stored_ones(model: dino.DINO) -> None:
    known = parity.load_json("fingerprints")["small"]["weights"]
    weights = dino.checkpoint.to_official(model.state_dict())
    assert {fill.canonical(name) for name in weights} == {fill.canonical(name) for name in known}
    for name, value in weights.items():
        shape, checksum, _ = known[fill.canonical(name)]
        assert list(value.shape) == shape
        assert f"{zlib.crc32(value.numpy().tobytes()):08x}" == checksum, name


def test_backbone_features(evaluated: tuple, stored: dict) -> None:
    features = evaluated[0].outputs["backbone"]
    for level, feature in enumerate(features):
        assert list(feature.shape) == stored[f"feat{level}.shape"].tolist()
        assert error(sample(feature, 4096), stored[f"feat{level}.sample"]) < FEATURES


def test_neck_masks_positions_and_geometry(evaluated: tuple, stored: dict) -> None:
    maps, padding = evaluated[0].outputs["neck"]
    for level, feature in enumerate(maps):
        assert error(feature, stored[f"src{level}"]) < MEMORY
    assert torch.equal(padding, torch.cat([parity.tensor(stored[f"mask{i}"]).flatten(1) for i in range(len(maps))], 1))
    _, levels = flatten_levels(maps, padding)
    positions = image_position(levels.rows, levels.columns, 64)
    positions = positions.split([height * width for height, width in levels.spatial_shapes], 1)
    for level, (position, shape) in enumerate(zip(positions, levels.spatial_shapes, strict=True)):
        assert error(position.unflatten(1, shape).permute(0, 3, 1, 2), stored[f"pos{level}"]) < 1e-5
    assert [list(shape) for shape in levels.spatial_shapes] == stored["spatial_shapes"].tolist()
    assert error(levels.valid_ratios, stored["valid_ratios"]) < 1e-6
    assert error(encoder_reference_points(levels), stored["enc_ref"]) < 1e-6
    assert error(token_proposals(levels)[0], stored["output_proposals"]) < 1e-5


def test_encoder_layers_and_query_selection(evaluated: tuple, stored: dict) -> None:
    recorder, outputs = evaluated
    for index in range(2):
        assert error(recorder.outputs[f"encoder.layers.{index}"], stored[f"enc_layer{index}"]) < MEMORY
    assert error(recorder.outputs["query_selection.norm"], stored["output_memory"]) < MEMORY
    scores = recorder.outputs["query_selection.class_head"].max(-1).values
    assert error(scores, stored["enc_class_max"]) < MEMORY
    assert torch.equal(outputs.selected_indices, parity.tensor(stored["topk"]))
    assert error(outputs.proposals_cxcywh, stored["init_box_proposal"]) < BOXES


def test_decoder_layers(evaluated: tuple, stored: dict) -> None:
    recorder, _ = evaluated
    states, references = recorder.outputs["decoder"]
    for index in range(2):
        _, position, boxes, *_ = recorder.inputs[f"decoder.layers.{index}"]
        assert error(position, stored[f"dec{index}.query_pos"]) < STATES
        assert error(boxes, stored[f"dec{index}.ref_in"]) < BOXES
        assert error(recorder.outputs[f"decoder.layers.{index}"], stored[f"dec{index}.out"]) < STATES
        assert error(states[index], stored[f"hs{index}"]) < STATES
        assert error(references[index], stored[f"reference{index}"]) < BOXES


def test_predictions(evaluated: tuple, stored: dict) -> None:
    outputs = evaluated[1].as_dict()
    assert error(outputs["pred_logits"], stored["pred_logits"]) < LOGITS
    assert error(outputs["pred_boxes"], stored["pred_boxes"]) < BOXES
    assert error(outputs["aux_outputs"][0]["pred_logits"], stored["aux0.pred_logits"]) < LOGITS
    assert error(outputs["aux_outputs"][0]["pred_boxes"], stored["aux0.pred_boxes"]) < BOXES
    assert error(outputs["interm_outputs"]["pred_logits"], stored["interm.pred_logits"]) < MEMORY
    assert error(outputs["interm_outputs"]["pred_boxes"], stored["interm.pred_boxes"]) < BOXES
    assert "dn" not in outputs


@pytest.mark.parametrize("as_dict", [False, True], ids=["output", "dict"])
def test_detections(evaluated: tuple, stored: dict, as_dict: bool) -> None:
    outputs = evaluated[1].as_dict() if as_dict else evaluated[1]
    detections = dino.postprocess(outputs, parity.tensor(stored["pp.target_sizes_hw"]), 100)
    for image, found in enumerate(detections):
        assert error(found["scores"], stored[f"pp{image}.scores"]) < 5e-6
        assert error(found["boxes"], stored[f"pp{image}.boxes_xyxy"]) < PIXELS
        assert torch.equal(found["labels"], parity.tensor(stored[f"pp{image}.labels"]))


@pytest.mark.parametrize("case", CASES)
def test_losses(forward: Forward, case: str) -> None:
    step, _, losses, total = forward(case)
    expected = {name.removeprefix("loss."): value for name, value in step.stored.items() if name.startswith("loss.")}
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=2e-6, abs=1e-7), name
    assert total.item() == pytest.approx(step.stored["loss_total"].item(), rel=7e-7)


@pytest.mark.parametrize("case", CASES)
def test_matches(model: dino.DINO, forward: Forward, case: str) -> None:
    step, outputs, _, _ = forward(case)
    assert outputs.encoder_logits is not None and outputs.encoder_boxes_cxcywh is not None
    logits = [outputs.logits, outputs.encoder_logits[None]]
    boxes = [outputs.boxes_cxcywh, outputs.encoder_boxes_cxcywh[None]]
    truth = PackedTargets.pack(step.targets)
    matched = pairs_of(dino.build_criterion(model.config).match(logits, boxes, truth), truth)
    for name, pairs in zip(("aux0", "final", "interm"), matched, strict=True):
        for image, (query, target) in enumerate(pairs):
            assert query.tolist() == step.stored[f"match.{name}.{image}.pred"].tolist()
            assert target.tolist() == step.stored[f"match.{name}.{image}.gt"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_denoising_and_matching_branches_in_training(forward: Forward, case: str) -> None:
    step, outputs, _, _ = forward(case)
    assert error(outputs.logits[-1], step.stored["pred_logits"]) < LOGITS
    assert error(outputs.boxes_cxcywh[-1], step.stored["pred_boxes"]) < BOXES
    denoising = outputs.as_dict()["dn"]
    assert denoising["pad_size"] == step.stored["dn.pad_size"]
    assert denoising["num_groups"] == step.stored["dn.num_groups"]
    if denoising["pad_size"]:
        assert error(denoising["pred_logits"], step.stored["dn.pred_logits"]) < LOGITS
        assert error(denoising["pred_boxes"], step.stored["dn.pred_boxes"]) < BOXES


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    """In float64: the gradient of bilinear sampling jumps where a sample crosses from pixel to pixel.

    One sample of the small model is 3e-7 pixels from such a border, which float32 crosses with some processors and
    numbers of threads: then a few gradients change by up to 6e-4.
    """
    model = parity.filled_double_model()
    step = TrainingCase.load(case)
    errors = step.gradient_errors(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert max(errors.values()) < 2e-6, max(errors.items(), key=lambda item: item[1])
    gradients = dino.checkpoint.to_official({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    total = torch.stack([g.double().norm() for g in gradients.values()]).norm().item()
    assert total == pytest.approx(step.stored["grad.total_norm"].item(), rel=1e-6)
    for name, values in zip(step.stored["grad.names"], step.stored["grad.samples"], strict=True):
        actual = sample(gradients[str(name)], 16).double()
        expected = parity.tensor(values)[: len(actual)].double()
        scale = gradients[str(name)].abs().max().item()
        assert (actual - expected).abs().max().item() <= 2e-6 * scale + 1e-12, name


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_float32(model: dino.DINO, case: str) -> None:
    errors = TrainingCase.load(case).gradient_errors(model)
    assert max(errors.values()) < 2e-3, max(errors.items(), key=lambda item: item[1])
    assert sorted(errors.values())[len(errors) // 2] < 2e-5


def test_no_boxes_give_exactly_zero_gradient_to_box_heads_and_label_embedding(model: dino.DINO) -> None:
    TrainingCase.load("gt0_0").gradient_errors(model)
    zero = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() == 0]
    assert [name for name in zero if "box_head" in name] == [n for n, _ in model.named_parameters() if "box_head" in n]
    assert "denoising.label_embed.weight" in zero


def test_three_optimiser_steps() -> None:
    model = parity.filled_double_model()
    step = TrainingCase.load("gt3_5")
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["backbone" in name].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[False], "lr": 1e-4}, {"params": groups[True], "lr": 1e-5}], weight_decay=1e-4
    )
    for expected_loss, expected_norm in zip(
        step.stored["steps.loss_total"], step.stored["steps.grad_norm_preclip"], strict=True
    ):
        total = step.run(model, force_selection=False)[2]  # it changes with the weights
        assert total.item() == pytest.approx(expected_loss, rel=1e-6)
        optimizer.zero_grad()
        total.backward()
        norms = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
        assert torch.stack(norms).norm().item() == pytest.approx(expected_norm, rel=1e-5)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    after = dino.checkpoint.to_official({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    for name, norm in zip(step.stored["steps.param_names"], step.stored["steps.param_l2_after"], strict=True):
        assert after[str(name)].double().norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-7), name
