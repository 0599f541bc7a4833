"""Parts in isolation, against stored inputs and outputs of the official ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dino
from dino.model.boxes import inverse_sigmoid
from dino.model.criterion import KINDS, matched_predictions, set_losses
from dino.model.denoising import Denoising
from dino.model.encoder import encoder_reference_points, flatten_levels
from dino.model.position import BOX_TEMPERATURE, box_position, image_position, pixel_counts, wavelengths
from dino.model.query_selection import token_proposals
from dino_kernels import PackedTargets, matching_cost, pairs_of
from dino_kernels.nn import MSDeformAttn
from tests.dino.model import parity
from tests.dino.model.parity import error, sample, tensor

LENGTHS = wavelengths(128, BOX_TEMPERATURE, torch.device("cpu"))


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    return parity.load("components")


def test_inverse_sigmoid(stored: dict) -> None:
    assert error(inverse_sigmoid(tensor(stored["invsig.x"])), stored["invsig.y"]) < 1e-6


def test_box_position(stored: dict) -> None:
    assert error(box_position(tensor(stored["decsine.pos"]), LENGTHS), stored["decsine.out"]) < 2e-6


def test_image_position(stored: dict) -> None:
    mask = tensor(stored["imgpos.mask"])
    height, width = mask.shape[1:]
    position = image_position(*pixel_counts(mask.flatten(1), [(height, width)]), 256)
    assert error(position.unflatten(1, (height, width)).permute(0, 3, 1, 2), stored["imgpos.out"]) < 2e-6


def test_proposals_of_five_levels_and_the_border_of_wide_images(stored: dict) -> None:
    shapes = stored["prop.shapes"].tolist()
    _, levels = flatten_levels([torch.zeros(2, 1, *shape) for shape in shapes], tensor(stored["prop.mask_flatten"]))
    assert error(levels.valid_ratios, stored["prop.valid_ratios"]) < 1e-6
    proposals, unusable = token_proposals(levels)
    assert error(proposals, stored["prop.proposals"]) < 1e-5
    assert torch.equal(~unusable, tensor(stored["prop.memory_kept"]))
    width_of_finest = shapes[0][1]
    assert width_of_finest >= 50 and unusable[0, 0]  # 0.5 / 50 is not more than 0.01
    assert error(sample(encoder_reference_points(levels), 4096), stored["prop.enc_reference_sample"]) < 1e-6


@pytest.mark.parametrize("coordinates", [2, 4])
def test_deformable_attention(stored: dict, coordinates: int) -> None:
    attention = MSDeformAttn(32, 3, 4, 4)
    attention.load_state_dict(
        {name.removeprefix("msda.w."): tensor(v) for name, v in stored.items() if name.startswith("msda.w.")}
    )
    query, value = (tensor(stored[f"msda.{name}"]).requires_grad_() for name in ("query", "input"))
    reference = tensor(stored[f"msda.ref{coordinates}"]).requires_grad_()
    padding = tensor(stored["msda.pad"])
    output = attention(query, reference, value, tensor(stored["msda.shapes"]), None, padding)
    assert error(output, stored[f"msda.out{coordinates}"]) < 1e-6
    output.backward(tensor(stored[f"msda.gout{coordinates}"]))
    for leaf, name in ((query, "query"), (value, "input"), (reference, "ref")):
        assert error(leaf.grad, stored[f"msda.grad_{name}{coordinates}"]) < 2e-5, name
    for name, parameter in attention.named_parameters():
        assert error(parameter.grad, stored[f"msda.grad{coordinates}.{name}"]) < 5e-5, name


def targets_of(stored: dict, prefix: str) -> list[dict[str, torch.Tensor]]:
    count = sum(f"{prefix}gt{b}.labels" in stored for b in range(2))
    return [{key: tensor(stored[f"{prefix}gt{b}.{key}"]) for key in ("labels", "boxes")} for b in range(count)]


def test_matching_cost_and_assignment(stored: dict) -> None:
    logits, boxes = tensor(stored["match.logits"]), tensor(stored["match.boxes"])
    targets = targets_of(stored, "match.")
    cost = matching_cost(logits, boxes, targets)[0].split([len(target["labels"]) for target in targets])
    for image, of_image in enumerate(cost):
        assert error(of_image.T, stored[f"match.cost{image}"]) < 2e-5
    query_idx = dino.build_criterion("dino_4scale_r50").match(logits[None], boxes[None], PackedTargets.pack(targets))
    for image, (query, target) in enumerate(pairs_of(query_idx, targets)[0]):
        assert query.tolist() == stored[f"match.{image}.pred"].tolist()
        assert target.tolist() == stored[f"match.{image}.gt"].tolist()


def test_losses_and_their_gradients(stored: dict) -> None:
    logits = tensor(stored["match.logits"]).requires_grad_()
    boxes = tensor(stored["match.boxes"]).requires_grad_()
    targets = targets_of(stored, "match.")
    truth = PackedTargets.pack(targets)
    query = dino.build_criterion("dino_4scale_r50").match(logits[None], boxes[None], truth)
    num_boxes = float(stored["match.num_boxes"])
    predictions = matched_predictions(logits[None], boxes[None], query, truth.image_of_each(), num_boxes)
    losses = set_losses([predictions], truth)[0][:, 0]
    for name, value in zip(KINDS, losses, strict=True):
        assert value.item() == pytest.approx(stored[f"match.loss.{name}"].item(), rel=1e-5), name
    # The stored gradients are of the weighted sum, as in training.
    (losses[:3] * torch.tensor([1.0, 5.0, 2.0])).sum().backward()
    assert error(logits.grad, stored["match.grad_logits"]) < 1e-6
    assert error(boxes.grad, stored["match.grad_boxes"]) < 1e-5


def test_postprocessing(stored: dict) -> None:
    outputs = {"pred_logits": tensor(stored["match.logits"]), "pred_boxes": tensor(stored["match.boxes"])}
    detections = dino.postprocess(outputs, tensor(stored["pp.sizes_hw"]), 30)
    for image, found in enumerate(detections):
        assert error(found["scores"], stored[f"pp{image}.scores"]) < 1e-6
        assert torch.equal(found["labels"], tensor(stored[f"pp{image}.labels"]))
        assert error(found["boxes"], stored[f"pp{image}.boxes"]) < 5e-3


NOISE_CASES = ("gt3_5", "gt4_0", "gt0_0", "gt60_2", "gt120_7", "gt2_1_dn10", "gt1")


@pytest.mark.parametrize("case", NOISE_CASES)
def test_denoising_queries_are_the_official_ones(stored: dict, case: str) -> None:
    prefix = f"cdn.{case}."
    number, queries = int(stored[prefix + "dn_number"]), int(stored[prefix + "num_queries"])
    # The embedding in the stored files is 8 wide; nothing else depends on the channels.
    denoising = Denoising(dino.model_config("dino_4scale_r50", num_denoising=number))
    denoising.label_embed = torch.nn.Embedding.from_pretrained(tensor(stored["cdn.label_enc"]))
    targets = targets_of(stored, prefix)
    made = denoising(PackedTargets.pack(targets), parity.recorded_noise(stored, prefix, targets))
    assert made.layout.num_queries == stored[prefix + "pad_size"]
    assert made.layout.num_groups == stored[prefix + "num_groups"]
    assert np.array_equal(made.content.numpy(), stored[prefix + "query_label"])
    # All but the last operation is bitwise the same; a logarithm differs by a rounding between processors.
    assert made.anchors.numel() == 0 or error(made.anchors, stored[prefix + "query_bbox"]) < 5e-7
    packed = np.packbits(made.blocked(queries).numpy(), axis=1)
    assert np.array_equal(packed, stored[prefix + "attn_mask_packed"])
