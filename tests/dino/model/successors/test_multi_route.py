"""Multi-route training: the assignment, what each route replaces, its losses, and that inference has none of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dino
import dino_kernels
from dino.model.boxes import cxcywh_to_xyxy, iou_and_giou
from dino.model.decoder import DecoderLayer
from dino.model.layers import self_attention
from dino.model.successors.multi_route import TOKENS, RouteLayer, Routes, assign_one_to_many, instructed_mask
from dino.training.step import loss_parts, part_names
from dino_kernels import PackedTargets
from tests.dino.model.criterion_toys import CLASSES, LAYERS, outputs_of, targets_of
from tests.dino.model.successors.successor_toys import GOLDEN
from tests.dino.model.test_model import batch, memory_of, tiny

# The assignment --------------------------------------------------------------------------------------------------


def transcribed(logits: Tensor, boxes: Tensor, truth: dict[str, Tensor]) -> list[list[int]]:
    """Return the queries of each target of an image, from the rule, one query and target at a time in float64."""
    count, queries = len(truth["labels"]), len(logits)
    score = [[0.0] * queries for _ in range(count)]
    for t in range(count):
        for q in range(queries):
            pair = cxcywh_to_xyxy(boxes[q].double()), cxcywh_to_xyxy(truth["boxes"][t].double())
            p = 1 / (1 + math.exp(-logits[q, truth["labels"][t]].double().item()))
            score[t][q] = 0.8 * iou_and_giou(*pair)[0].item() + 0.2 * p
    best = {max(range(queries), key=lambda q: row[q]) for row in score}
    positives = [0] * count
    for q in range(queries):
        owner = max(range(count), key=lambda t: score[t][q])
        positives[owner] += score[owner][q] >= 0.4 or q in best
    return [sorted(range(queries), key=lambda q: -row[q])[: min(c, 6)] for row, c in zip(score, positives, strict=True)]


def listed(query: Tensor) -> list[list[int]]:
    """Return the queries of each target from [N * 6]."""
    return [[q for q in of_target if q >= 0] for of_target in query.view(-1, 6).tolist()]


def test_queries_are_those_of_the_public_code() -> None:
    golden = GOLDEN["expected"]["one_to_many"]
    truth = [
        {"labels": torch.tensor(labels), "boxes": torch.tensor(boxes)}
        for labels, boxes in zip(golden["labels"], golden["target_boxes"], strict=True)
    ]
    logits, boxes = torch.tensor(golden["logits"])[None], torch.tensor(golden["boxes"])[None]
    found = assign_one_to_many(logits, boxes, PackedTargets.pack(truth))[0]
    assert listed(found) == [queries for image in golden["queries"] for queries in image]


@pytest.mark.parametrize("capacity", [None, 20])
@pytest.mark.parametrize("queries", [30, 4])
def test_each_set_and_image_is_assigned_by_the_rule(queries: int, capacity: int | None) -> None:
    torch.manual_seed(0)
    targets = targets_of(4, 0, 3)
    packed = PackedTargets.pack(targets, capacity=capacity)
    logits = torch.randn(3, 3, queries, CLASSES) * 2
    true = torch.cat([target["boxes"] for target in targets])
    boxes = true[torch.randint(7, (3, 3, queries))] + torch.randn(3, 3, queries, 4) * 0.03
    boxes[:, :, -2:] = torch.rand(3, 3, 2, 4) * 0.1 + 0.02  # these overlap nothing
    boxes = boxes.clamp(0.01, 0.99)
    found = assign_one_to_many(logits, boxes, packed)
    assert found.shape == (3, 6 * len(packed)) and (found[:, 42:] == -1).all()
    for number in range(3):
        for image, first, count in ((0, 0, 4), (2, 4, 3)):
            expected = transcribed(logits[number, image], boxes[number, image], targets[image])
            assert listed(found[number, 6 * first : 6 * (first + count)]) == expected


def test_targets_of_one_class_that_nothing_overlaps_share_no_owner() -> None:
    """Both have the same scores: the first owns the query, and the second gets none."""
    truth = [{"labels": torch.tensor([1, 1]), "boxes": torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]])}]
    boxes = torch.full((1, 1, 8, 4), 0.5) * torch.tensor([1, 1, 0.2, 0.2])
    found = assign_one_to_many(torch.randn(1, 1, 8, CLASSES), boxes, PackedTargets.pack(truth))
    assert [len(queries) for queries in listed(found[0])] == [1, 0]


@pytest.mark.parametrize("broken", ["logits", "boxes"])
def test_queries_that_are_not_finite_are_not_assigned(broken: str) -> None:
    outputs, packed = outputs_of(2, 20), PackedTargets.pack(targets_of(2, 3))
    sources = {"logits": outputs.logits, "boxes": outputs.boxes_cxcywh}
    unlucky = int(assign_one_to_many(sources["logits"], sources["boxes"], packed)[1, 0])
    sources[broken][1, 0, unlucky] = math.nan
    found = assign_one_to_many(sources["logits"], sources["boxes"], packed)[1]
    assert unlucky not in found[: 2 * 6].tolist() and (found[[0, 6]] >= 0).any()
    sources[broken][:] = math.nan
    assert (assign_one_to_many(sources["logits"], sources["boxes"], packed) == -1).all()


# The routes ------------------------------------------------------------------------------------------------------


def test_matching_queries_attend_to_the_tokens_and_denoising_queries_do_not() -> None:
    """Against PyTorch's module in float64, with tokens as queries that nobody reads."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, 4, batch_first=True).double()
    query, value, tokens, contents = (torch.randn(*size, 32).double() for size in ((2, 9), (2, 9), (10,), (10,)))
    blocked = torch.zeros(9, 9, dtype=torch.bool)
    blocked[4:, :4] = True
    wide = instructed_mask(blocked, 4)
    assert wide is not None and wide.shape == (9, 9 + TOKENS)
    mask = torch.zeros(wide.shape).double().masked_fill(wide, -torch.inf)
    found = self_attention(module, query, value, mask, (tokens, contents))
    keys, values = (torch.cat([a.expand(2, -1, -1), b], 1) for a, b in ((tokens, query), (contents, value)))
    full = torch.cat([torch.ones(10, 19, dtype=torch.bool), wide])
    full[:10, 0] = False  # rows of tokens are cut off
    expected = module(keys, keys, values, attn_mask=full, need_weights=False)[0][:, 10:]
    torch.testing.assert_close(found, expected)
    alone = self_attention(module, query, value, torch.zeros(9, 9).double().masked_fill(blocked, -torch.inf))
    torch.testing.assert_close(found[:, :4], alone[:, :4])
    assert not torch.allclose(found[:, 4:], alone[:, 4:]) and instructed_mask(None, 0) is None


def test_a_route_replaces_its_own_parts_alone() -> None:
    torch.manual_seed(0)
    model = tiny(multi_route=True)
    layer, memory = model.decoder.layers[0], memory_of(model, *batch())
    assert isinstance(layer, DecoderLayer) and model.routes is not None
    states, position = torch.randn(2, 2, 7, states_width(model)).unbind()
    boxes = torch.rand(2, 7, memory.levels.valid_ratios.shape[1], 4)
    plain = layer(states, position, boxes, memory, None)
    first, second = model.routes.feed_forward[0], model.routes.instructed[0]
    assert isinstance(first, RouteLayer) and isinstance(second, RouteLayer)
    assert not torch.allclose(layer(states, position, boxes, memory, None, first), plain)
    first.load_state_dict({n: x for n, x in layer.ffn.state_dict().items() if n.startswith("linear")})
    torch.testing.assert_close(layer(states, position, boxes, memory, None, first), plain)
    tokens = instructed_mask(torch.zeros(7, 7, dtype=torch.bool), 7)
    assert tokens is not None
    mask = torch.zeros(tokens.shape).masked_fill(tokens, -torch.inf)
    torch.testing.assert_close(layer(states, position, boxes, memory, mask, second), plain)
    assert not torch.allclose(layer(states, position, boxes, memory, None, second), plain)


def states_width(model: dino.DINO) -> int:
    return model.config.hidden_dim


def model_pair(**switches: Any) -> tuple[dino.DINO, dino.DINO]:
    """Return a model with the routes and one without, of the same weights."""
    model, without = tiny(multi_route=True, **switches), tiny(**switches)
    without.load_state_dict({n: x for n, x in model.state_dict().items() if not n.startswith("routes.")})
    return model, without


@pytest.mark.parametrize("selection", ["mixed", "pure", "static"])
def test_the_primary_route_has_the_bits_of_a_model_without_others(selection: str) -> None:
    model, without = model_pair(query_selection=selection)
    truth = targets_of(2, 3)
    runs = []
    for each in (model.train(), without.train()):
        torch.manual_seed(7)
        runs.append(each(*batch(), truth))
    found, expected = runs
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes_cxcywh, expected.boxes_cxcywh)
    assert torch.equal(found.denoising.logits, expected.denoising.logits)
    assert len(found.routes) == 2 and expected.routes == ()
    for route in found.routes:
        assert route.logits.shape == found.logits.shape and route.denoising.logits.shape == found.denoising.logits.shape
        assert not torch.equal(route.logits, found.logits)
    assert found.routes[0].encoder_logits is None
    assert (found.routes[1].encoder_logits is None) == (selection == "static")
    assert len(found.as_dict()["routes"]) == 2
    with torch.no_grad():
        found, expected = model.eval()(*batch()), without.eval()(*batch())
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes_cxcywh, expected.boxes_cxcywh)
    assert found.routes == ()


@pytest.mark.parametrize("counts", [(2, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("switches", [{}, {"query_selection": "pure"}, {"query_selection": "static"}], ids=str)
def test_every_parameter_of_the_routes_gets_a_gradient(switches: dict[str, Any], counts: tuple[int, int]) -> None:
    model = tiny(multi_route=True, **switches).train()
    criterion, truth = dino.build_criterion(model.config), targets_of(*counts)
    losses = criterion(model(*batch(), truth), truth)
    assert losses.table.shape[1] == len(losses) // 6 and losses.num_routes == criterion.num_routes
    criterion.weighted_total(losses).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert isinstance(model.routes, Routes)
    moved = {name for name, p in model.routes.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"feed_forward.0.linear1.weight", "instructed.1.content", "instructed.0.norm.weight"} <= moved


# Losses ----------------------------------------------------------------------------------------------------------


def test_routes_have_the_losses_of_their_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes by the focal loss of every query that is matched, boxes by the pairs; a third of a target's weight."""
    targets = targets_of(2, 3)
    packed = PackedTargets.pack(targets)
    outputs = outputs_of(2, 20, denoising_of=packed)
    plain = dino.build_criterion("dino_tiny", num_classes=CLASSES)
    expected = plain(outputs, targets)
    first, second = (outputs_of(2, 20, denoising_of=packed) for _ in range(2))
    for number, route in enumerate((first, second)):
        route.logits += number + 1
        assert route.denoising is not None
        route.denoising.logits += number + 1
    first.encoder_logits = first.encoder_boxes_cxcywh = None
    outputs.routes = (first, second)
    calls, match = [], dino_kernels.hungarian_match
    monkeypatch.setattr(dino_kernels, "hungarian_match", lambda *a, **k: calls.append(1) or match(*a, **k))
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES, multi_route=True)
    losses = criterion(outputs, targets)
    assert len(calls) == 1 and losses.num_routes == 2 * LAYERS + 1
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    other = plain(second, targets)
    for kind in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(losses[f"{kind}_interm_instructed"], other[f"{kind}_interm"])
        torch.testing.assert_close(losses[f"{kind}_dn_0_instructed"], other[f"{kind}_dn_0"])
    for route, name in ((first, "ffn"), (second, "instructed")):
        for layer, suffix in enumerate(("_0", "")):
            classes, l1, giou = 0.0, 0.0, 0.0
            for image, target in enumerate(targets):
                x, boxes = route.logits[layer, image].double(), route.boxes_cxcywh[layer, image].double()
                positive = torch.zeros_like(x)
                for t, queries in enumerate(transcribed(x, boxes, target)):
                    positive[queries, target["labels"][t]] = 1
                    true = target["boxes"][t].double()
                    l1 += (boxes[queries] - true).abs().sum().item()
                    overlap = iou_and_giou(cxcywh_to_xyxy(boxes[queries]), cxcywh_to_xyxy(true))[1]
                    giou += (1 - overlap).sum().item()
                p = x.sigmoid()
                loss = -positive * 0.25 * (1 - p) ** 2 * p.log() - (1 - positive) * 0.75 * p**2 * (1 - p).log()
                classes += loss.sum().item()
            for kind, value in (("loss_ce", classes), ("loss_bbox", l1), ("loss_giou", giou)):
                assert losses[f"{kind}{suffix}_{name}"].item() == pytest.approx(value / 15, rel=1e-5)


def test_weights_of_denoising_are_those_of_all_routes() -> None:
    model = tiny(multi_route=True, class_weight=6.0).train()
    criterion, truth = dino.build_criterion(model.config), targets_of(2, 3)
    losses = criterion(model(*batch(), truth), truth)
    weights = criterion.weighted(losses)
    parts = dict(zip(part_names(losses), loss_parts(losses, weights).tolist(), strict=True))
    shares = dict.fromkeys(("routes", "denoising", "encoder", "rest"), 0.0)
    for number, name in enumerate(name[len("loss_ce") :] for name in losses if name.startswith("loss_ce")):
        kind = "routes" if name.endswith(("_ffn", "_instructed")) else "denoising" if "_dn" in name else "rest"
        shares["encoder" if name == "_interm" else kind] += weights[number].item()
    assert {name: parts[f"loss_{name}"] for name in shares if name != "rest"} == pytest.approx(
        {name: value for name, value in shares.items() if name != "rest"}
    )
    assert parts["loss"] == pytest.approx(sum(shares.values()))
    first = losses.first_denoising
    assert losses.table.shape[1] - first == 3 * losses.num_layers
    classes = torch.tensor([6.0] * first + [1.0] * (losses.table.shape[1] - first))
    torch.testing.assert_close(weights, classes * losses.table[0] + 5 * losses.table[1] + 2 * losses.table[2])
