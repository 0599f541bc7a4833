"""What the drawings of training show: the attention mask, the matches of checkpoints, gradients between layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import dino_kernels
from dino.data import pad_images
from dino.model.boxes import xyxy_to_cxcywh
from dino.model.criterion import build_criterion
from dino.model.outputs import DetectionOutput
from dino.visualize.attention_mask import BLOCKED, MATCHING, draw_attention_mask
from dino.visualize.gradients import draw_look_forward_gradients, look_forward_gradients
from dino.visualize.instability import (
    CHANGED,
    FIRST,
    SAME,
    SWAPPED,
    _colour,
    draw_matching,
    matched_targets,
    matching_instability,
)
from dino.visualize.stages import NEGATIVE, POSITIVE
from dino.visualize.watch import watch
from dino_kernels import PackedTargets
from tests.dino.tools_toys import TINY, tiny_detector

BOXES, LABELS = torch.tensor([[40.0, 30, 100, 90], [5, 5, 60, 50], [90, 60, 150, 110]]), torch.tensor([1, 0, 2])
TRUTH = {"boxes": xyxy_to_cxcywh(BOXES) / torch.tensor([160, 120, 160, 120]), "labels": LABELS}


def batch_of(detector, picture):
    image, _, _ = detector.transform(picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return pad_images([image])


@pytest.mark.parametrize("denoising", ["contrastive", "plain"])
def test_each_pixel_of_the_mask_is_that_of_the_decoder(denoising, picture):
    """The mask that reaches the decoder in training, sampled at the centre of each pair of queries."""
    detector = tiny_detector(dataclasses.replace(TINY, denoising=denoising))
    targets = [TRUTH, {"boxes": TRUTH["boxes"][:1], "labels": LABELS[:1]}]
    seen = []
    hook = detector.model.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[3]))
    image, mask = batch_of(detector, picture)
    detector.model.train()(image.expand(2, -1, -1, -1), mask.expand(2, -1, -1), targets)
    hook.remove()
    blocked = seen[0]
    drawn = np.asarray(draw_attention_mask(detector, targets))[58:888, 106:936]
    count, kinds = len(blocked), 2 if denoising == "contrastive" else 1
    share = max(0.6, 1 - 20 / count)
    centres = np.concatenate(
        [(np.arange(count - 20) + 0.5) / (count - 20) * share, share + (np.arange(20) + 0.5) / 20 * (1 - share)]
    )
    for i in range(count):
        for j in range(count):
            kind = MATCHING if j >= count - 20 else NEGATIVE if j % (3 * kinds) >= 3 else POSITIVE
            expected = BLOCKED if blocked[i, j] else kind
            assert tuple(drawn[int(830 * centres[i]), int(830 * centres[j])]) == expected, (i, j)
    assert blocked.any() and not blocked.all()


def test_many_queries_leave_room_for_the_groups(picture):
    many = tiny_detector(dataclasses.replace(TINY, num_queries=900, num_denoising=100))
    drawn = np.asarray(draw_attention_mask(many, [TRUTH]))
    assert (drawn == POSITIVE).all(-1).sum() > 33 * 40  # 33 groups
    assert drawn.shape[1] == 960


def test_drawing_the_mask_does_not_touch_the_random_numbers_of_others(detector):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw_attention_mask(detector, [TRUTH])
    assert torch.equal(torch.rand(3), expected)


def test_matches_are_those_of_the_last_layer_at_the_least_cost(detector, picture):
    outputs = watch(detector, picture).outputs
    found = matched_targets(detector.model, outputs, [TRUTH])
    packed = PackedTargets.pack([TRUTH])
    cost = dino_kernels.matching_cost(outputs.logits[-1:], outputs.boxes_cxcywh[-1:], packed, weights=(2, 5, 2))[0]
    expected = torch.full((1, 20), -1)
    for target, query in zip(*linear_sum_assignment(cost), strict=True):
        expected[0, query] = target
    assert torch.equal(found, expected)


def test_targets_of_a_batch_are_counted_within_their_image(detector, picture):
    outputs = watch(detector, picture).outputs
    twice = DetectionOutput(outputs.logits.repeat(1, 2, 1, 1), outputs.boxes_cxcywh.repeat(1, 2, 1, 1))
    alone = matched_targets(detector.model, outputs, [TRUTH])
    assert torch.equal(matched_targets(detector.model, twice, [TRUTH, TRUTH]), alone.repeat(2, 1))


def test_instability_counts_predictions_whose_target_differs():
    before = torch.tensor([[0, -1, 1, -1], [-1, -1, 0, -1]])
    after = torch.tensor([[0, 1, -1, -1], [-1, -1, 0, -1]])
    assert matching_instability(before, after) == 1.0  # two in the first image, none in the second
    assert matching_instability(before, before) == 0.0
    assert (
        matching_instability([torch.tensor([0, 1]), torch.tensor([0])], [torch.tensor([1, 0]), torch.tensor([-1])])
        == 1.5
    )
    for wrong in (after[:, :3], after[:1]):
        with pytest.raises(ValueError, match="matches_after must have the images and predictions of matches_before"):
            matching_instability(before, wrong)
    with pytest.raises(ValueError, match="at least one image"):
        matching_instability([], [])


def test_colours_say_whether_query_or_token_changed():
    before = torch.tensor([0, 1, -1, -1]), torch.tensor([70, 71, 72, 73])
    now = torch.tensor([0, -1, 1, 2]), torch.tensor([70, 73, 71, 75])
    assert _colour(0, 0, now, None) == FIRST
    assert _colour(0, 0, now, before) == SAME
    assert _colour(2, 1, now, before) == SWAPPED  # query 2 has the token of query 1 before
    assert _colour(3, 2, now, before) == CHANGED
    assert _colour(2, 1, (now[0], None), (before[0], None)) == CHANGED


@pytest.mark.parametrize("selection", ["mixed", "static"])
def test_checkpoints_are_compared_with_the_one_before(selection, picture):
    config = dataclasses.replace(TINY, query_selection=selection)
    first, second = tiny_detector(config, seed=0), tiny_detector(config, seed=1)
    drawn = draw_matching([("step 1", first), ("again", first), ("step 2", second)], picture, BOXES, LABELS)
    pixels, width = np.asarray(drawn), (960 - 16) // 3
    panels = [pixels[: width * 3 // 4, start : start + width] for start in (0, width + 8, 2 * (width + 8))]
    counts = [[(panel == colour).all(-1).sum() for colour in (FIRST, SAME, CHANGED)] for panel in panels]
    assert counts[0][0] > 100 and counts[0][1:] == [0, 0]
    assert counts[1][1] > 100 and counts[1][0] == counts[1][2] == 0
    assert counts[2][0] == 0 and counts[2][2] > 100
    assert drawn.width == 960


def test_long_names_have_a_line_of_their_own(detector, picture):
    short = draw_matching([("a", detector)] * 2, picture, BOXES, LABELS)
    long = draw_matching([("a name of more letters than there is room for " * 3, detector)] * 2, picture, BOXES, LABELS)
    four = draw_matching([("a", detector)] * 4, picture, BOXES, LABELS)
    assert short.height < long.height < four.height and short.width == long.width == four.width == 960


@pytest.mark.parametrize("heads", [True, False])
def test_gradients_are_those_of_the_training_loss(heads, picture):
    """Rows summed over losses: what a backward pass of the weighted box losses leaves in the parameters."""
    for way in ("once", "twice"):
        detector = tiny_detector(dataclasses.replace(TINY, look_forward=way, shared_heads=heads, num_decoder_layers=3))
        model, criterion = detector.model, build_criterion(detector.model.config)
        image, mask = batch_of(detector, picture)
        norms = look_forward_gradients(model, image, mask, [TRUTH])
        assert all(parameter.grad is None for parameter in model.parameters())
        losses = criterion(model(image, mask), [TRUTH])
        box_head: Any = model.decoder.box_head
        for j in range(3):
            model.zero_grad()
            (5 * losses.table[1, j] + 2 * losses.table[2, j]).backward(retain_graph=True)
            for i in range(3):
                own = [*model.decoder.layers[i].parameters()]
                own += [] if heads else [*box_head[i].parameters()]
                squares = [parameter.grad.square().sum() for parameter in own if parameter.grad is not None]
                expected = sum(squares, torch.tensor(0.0)).sqrt()
                torch.testing.assert_close(getattr(norms, way)[i, j], expected, rtol=1e-4, atol=1e-6)


def test_twice_adds_what_reaches_a_layer_through_its_box(detector, picture):
    norms = look_forward_gradients(detector.model, *batch_of(detector, picture), [TRUTH])
    layers = len(norms.once)
    for each in norms:
        assert (each.tril(-1) == 0).all()
    assert torch.equal(norms.once.diagonal(), norms.twice.diagonal()) and (norms.between.diagonal() == 0).all()
    assert (norms.between[torch.ones(layers, layers).triu(1).bool()] > 0).all()


def test_gradients_are_drawn_darker_the_larger_they_are(detector, picture):
    norms = look_forward_gradients(detector.model, *batch_of(detector, picture), [TRUTH])
    drawn = np.asarray(draw_look_forward_gradients(detector, picture, BOXES, LABELS)).astype(int)
    assert drawn.shape[1] == 960 and (drawn[:, -2:] == drawn[-1, -1]).all()
    corner = [[drawn[74 + 64 * i + 4, 62 + 64 * j + 4].sum() for j in range(2)] for i in range(2)]
    order = torch.tensor(corner).flatten().argsort().tolist()
    assert order[:3] == norms.once.flatten().argsort(descending=True).tolist()[:3]


def test_what_cannot_be_drawn_is_an_error(detector, picture):
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    other = tiny_detector(dataclasses.replace(TINY, num_queries=10, denoising="off"))
    with pytest.raises(ValueError, match='denoising="off"'):
        draw_attention_mask(other, [TRUTH])
    with pytest.raises(ValueError, match="there is no box"):
        draw_attention_mask(detector, [{"boxes": nothing[0], "labels": nothing[1]}])
    with pytest.raises(ValueError, match="there is no box"):
        draw_look_forward_gradients(detector, picture, *nothing)
    with pytest.raises(ValueError, match="there is no box"):
        draw_matching([("a", detector)] * 2, picture, *nothing)
    for checkpoints in ([("a", detector)], [("a", detector), ("b", other)]):
        with pytest.raises(ValueError, match="checkpoints must be at least two of equally many queries"):
            draw_matching(checkpoints, picture, BOXES, LABELS)
