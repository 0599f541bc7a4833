"""One-to-many matching in one call, mixed matching, and the hybrid branch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import dino
import dino_kernels
from dino.model.boxes import cxcywh_to_xyxy, iou_and_giou
from dino.model.successors.classification import Pairs, classification_loss, pair_targets
from dino.model.successors.match_cost import position_class_cost
from dino.model.successors.mixed_matching import rank_weights
from dino.training.step import loss_parts, part_names
from dino_kernels import PackedTargets
from tests.dino.model.criterion_toys import CLASSES, LAYERS, outputs_of, targets_of
from tests.dino.model.successors.successor_toys import GOLDEN, stored
from tests.dino.model.test_model import batch, tiny


def drawn(sets: int, queries: int) -> tuple[Tensor, Tensor]:
    return torch.randn(sets, 3, queries, CLASSES), torch.rand(sets, 3, queries, 4) * 0.4 + 0.2


# Matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("match_cost", ["focal", "position"])
@pytest.mark.parametrize("capacity", [None, 30])
def test_sets_of_different_copies_are_matched_as_each_would_be_alone(match_cost: str, capacity: int | None) -> None:
    """Copies take at most half of the queries: 5 boxes have 2 of 20 queries each, and 1 of 9."""
    torch.manual_seed(0)
    targets = targets_of(5, 0, 2)
    sources = [drawn(2, 20), drawn(1, 9)]
    copies = [1, 4, 3]
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES, match_cost=match_cost)
    packed = PackedTargets.pack(targets, capacity=capacity)
    logits, boxes = [source[0] for source in sources], [source[1] for source in sources]
    query = criterion.match(logits, boxes, packed, copies)
    assert query.shape == (3, 4 * len(packed)) and (query[:, 28:] == -1).all()
    sets = [(logits[0][0], boxes[0][0]), (logits[0][1], boxes[0][1]), (logits[1][0], boxes[1][0])]
    extra = None
    for number, (x, box) in enumerate(sets):
        for image, first, count in ((0, 0, 5), (2, 5, 2)):
            one = PackedTargets.pack([targets[image]])
            if match_cost == "position":
                extra = 2 * position_class_cost([x[None, image, None]], [box[None, image, None]], one)
            weights = (2.0 if extra is None else 0.0, 5.0, 2.0)
            cost = dino_kernels.matching_cost(
                x[None, image, None], box[None, image, None], one, weights=weights, extra_cost=extra
            )[0]
            k = min(copies[number], max(1, x.shape[1] // 2 // count))
            found = query[number, 4 * first : 4 * (first + count)].view(count, 4)
            assert (found[:, :k] >= 0).all() and (found[:, k:] == -1).all()
            rows, columns = linear_sum_assignment(cost.repeat_interleave(k, 0))
            assert len(set(found[:, :k].flatten().tolist())) == count * k
            total = cost.repeat_interleave(k, 0)
            least = total[rows, columns].sum().item()
            assert total[rows, found[:, :k].flatten()].sum().item() == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize(
    "switches", [{"classification": "varifocal", "mixed_matching": 2}, {"hybrid_queries": 12}], ids=str
)
def test_one_call_matches_everything(switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, match = [], dino_kernels.hungarian_match

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append([tuple(source.shape[:3]) for source in arguments[0]])
        return match(*arguments, **options)

    monkeypatch.setattr(dino_kernels, "hungarian_match", counted)
    outputs = outputs_of(2, 10, denoising_of=PackedTargets.pack(targets_of(2, 3)))
    if "hybrid_queries" in switches:
        outputs.hybrid = outputs_of(2, 12)
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES, **switches)
    criterion(outputs, targets_of(2, 3))
    hybrid = [(LAYERS, 2, 12), (1, 2, 12)] if outputs.hybrid else []
    assert calls == [[(LAYERS, 2, 10), (1, 2, 10), *hybrid]]


# Mixed matching --------------------------------------------------------------------------------------------------


def test_ranked_queries_have_the_loss_of_the_public_code() -> None:
    queries, boxes, logits = [[4, 1, 0, 3], [0, 5]], stored("boxes").flatten(0, 1), stored("logits").flatten(0, 1)
    row = torch.tensor([6 * image + query for image in range(2) for query in queries[image]])
    of_targets = [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
    label = torch.tensor([GOLDEN["labels"][image][number] for image, number in of_targets])
    true = torch.tensor([GOLDEN["target_boxes"][image][number] for image, number in of_targets], dtype=torch.float64)
    iou = iou_and_giou(cxcywh_to_xyxy(boxes[row]), cxcywh_to_xyxy(true))[0]
    exists = torch.ones(6, dtype=torch.bool)
    pairs = Pairs(row, label, iou, exists, row // 6, 2)
    scores = pair_targets("iou_aware", logits, pairs)
    weights = rank_weights(scores[None], exists[None], 2)[0]
    expected = GOLDEN["expected"]["mixed"]
    torch.testing.assert_close(weights, torch.tensor(expected["box_weights"]).double())
    logits.requires_grad_()
    loss = classification_loss("iou_aware", logits, scores * weights, pairs).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-7) and logits.grad is not None
    gradient = torch.tensor(expected["gradient"]).double()
    torch.testing.assert_close(logits.grad.view(2, 6, 4), gradient, rtol=2e-6, atol=1e-7)


def test_ranks_count_the_queries_that_exist() -> None:
    targets = torch.tensor([[0.2, 0.9, 0.5, math.nan, 0.1, 0.3]])
    exists = torch.tensor([[True, True, True, False, True, False]])
    ranks = -1.5 * rank_weights(targets, exists, 3).log()
    assert ranks[exists].round().tolist() == [2, 0, 1, 0]


def test_mixed_matching_weighs_boxes_by_rank_in_all_layers_but_the_last() -> None:
    targets = targets_of(2, 3)
    packed = PackedTargets.pack(targets)
    outputs = outputs_of(2, 30)
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES, classification="iou_aware", mixed_matching=2)
    losses = criterion(outputs, targets)
    assert (
        outputs.encoder_logits is not None
        and outputs.encoder_boxes_cxcywh is not None
        and packed.boxes_cxcywh is not None
    )
    logits = [*outputs.logits, outputs.encoder_logits]
    boxes = [*outputs.boxes_cxcywh, outputs.encoder_boxes_cxcywh]
    query = criterion.match(torch.stack(logits), torch.stack(boxes), packed, [2, 1, 2])
    image = packed.image_of_each().tolist()
    for number, name in enumerate(("_0", "", "_interm")):
        l1 = giou_loss = 0.0
        for n, label in enumerate(packed.labels.tolist()):
            found = []
            for q in query[number, 2 * n : 2 * n + 2].tolist():
                if q >= 0:
                    predicted, true = boxes[number][image[n], q].double(), packed.boxes_cxcywh[n].double()
                    iou, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))
                    p = logits[number][image[n], q, label].double().sigmoid()
                    quality = max((p**0.25 * iou**0.75).item(), 0.01)
                    found.append((quality, (predicted - true).abs().sum().item(), giou.item()))
            assert len(found) == (1 if name == "" else 2)
            for rank, (_, distance, giou) in enumerate(sorted(found, reverse=True)):
                l1 += math.exp(-rank / 1.5) * distance
                giou_loss += math.exp(-rank / 1.5) * (1 - giou)
        assert losses[f"loss_bbox{name}"].item() == pytest.approx(l1 / 5, rel=1e-4)
        assert losses[f"loss_giou{name}"].item() == pytest.approx(giou_loss / 5, rel=1e-4)
    assert (
        losses["class_error"] == dino.build_criterion("dino_tiny", num_classes=CLASSES)(outputs, targets)["class_error"]
    )


# Hybrid branch ---------------------------------------------------------------------------------------------------


def test_the_branch_has_the_losses_of_a_criterion_with_repeated_targets() -> None:
    targets = targets_of(2, 3)
    outputs = outputs_of(2, 10, denoising_of=PackedTargets.pack(targets))
    outputs.hybrid = outputs_of(2, 40)
    plain = dino.build_criterion("dino_tiny", num_classes=CLASSES)
    losses = dino.build_criterion("dino_tiny", num_classes=CLASSES, hybrid_queries=40)(outputs, targets)
    repeated = [{name: tensor.repeat_interleave(6, 0) for name, tensor in target.items()} for target in targets]
    alone = plain(outputs.hybrid, repeated)
    assert losses.num_hybrid == LAYERS + 1
    for kind in ("loss_ce", "loss_bbox", "loss_giou", "loss_xy"):
        for name in ("_0", "", "_interm"):
            torch.testing.assert_close(losses[f"{kind}{name}_hybrid"], alone[f"{kind}{name}"])
    outputs.hybrid = None
    others = plain(outputs, targets)
    for name, value in others.items():
        torch.testing.assert_close(losses[name], value)
    weighted = plain.weighted(losses)
    reported = dict(zip(part_names(losses), loss_parts(losses, weighted).tolist(), strict=True))
    assert reported["loss_hybrid"] == pytest.approx(weighted[LAYERS + 1 : -LAYERS].sum().item())
    assert reported["loss_encoder"] == pytest.approx(weighted[LAYERS].item())
    assert reported["loss_denoising"] == pytest.approx(weighted[-LAYERS:].sum().item())
    assert reported["loss"] == pytest.approx(weighted.sum().item())


def test_the_branch_exists_in_training_alone_and_changes_no_other_prediction() -> None:
    model = tiny(hybrid_queries=20).train()
    without = tiny().train()
    without.load_state_dict({n: x for n, x in model.state_dict().items() if not n.startswith("hybrid.")})
    outputs, expected = model(*batch()), without(*batch())
    assert torch.equal(outputs.logits, expected.logits) and torch.equal(outputs.boxes_cxcywh, expected.boxes_cxcywh)
    assert outputs.hybrid is not None and expected.hybrid is None
    assert outputs.hybrid.logits.shape == (2, 2, 20, 5) and outputs.hybrid.encoder_logits.shape == (2, 20, 5)
    assert outputs.as_dict()["hybrid"]["pred_boxes"].shape == (2, 20, 4)
    assert model.eval()(*batch()).hybrid is None
    fewer = tiny(hybrid_queries=500).train()(*batch(((32, 32), (32, 32))))
    assert fewer.hybrid is not None and fewer.hybrid.logits.shape[2] == 16 + 4 + 1


@pytest.mark.parametrize("counts", [(2, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("selection", ["mixed", "pure"])
def test_every_parameter_of_the_branch_gets_a_gradient(counts: tuple[int, int], selection: str) -> None:
    model = tiny(hybrid_queries=20, query_selection=selection).train()
    criterion, truth = dino.build_criterion(model.config), targets_of(*counts)
    criterion.weighted_total(criterion(model(*batch(), truth), truth)).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.hybrid is not None
    moved = [name for name, p in model.hybrid.named_parameters() if p.grad is not None and p.grad.any()]
    assert "content.weight" in moved and "class_head.weight" in moved
    assert ("box_head.layers.2.weight" in moved) == (sum(counts) > 0)


def test_impossible_combinations_are_refused() -> None:
    for changes, message in (
        ({"mixed_matching": 2}, "classification must be one of .* with mixed_matching above 1, got 'focal'"),
        (
            {"hybrid_queries": 5, "query_selection": "static"},
            "query_selection must be mixed or pure with hybrid_queries",
        ),
        ({"mixed_matching": 0}, "mixed_matching must be at least 1, got 0"),
        ({"hybrid_queries": -1}, "hybrid_queries must be at least 0, got -1"),
        ({"hybrid_copies": 0}, "hybrid_copies must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dino.model_config("dino_tiny", **changes)
