"""`HungarianMatcher`, a drop-in for the matchers of DETR and its family; public in `dino_kernels.nn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dino_kernels.nn.mask_cost import mask_cost
from dino_kernels.ops._checks import check_choice, check_count, check_flag, check_number
from dino_kernels.ops._matching import Check, Targets, Ties, check_choices, report_status
from dino_kernels.ops.hungarian_match import Match, backends, hungarian_match
from dino_kernels.ops.hungarian_match.pairs import Pair, pairs_of
from dino_kernels.targets import PackedTargets

OP = "HungarianMatcher"


@dataclass(frozen=True)
class _Family:
    """Differences between the originals, besides the weights."""

    formula: str  # preset of `hungarian_match`
    by_use_focal_loss: bool = False  # `use_focal_loss` selects the class cost
    as_dict: bool = False  # forward returns {"indices": ...}
    masks: bool = False  # masks instead of boxes


FAMILIES = {
    "dino": _Family("dino"),
    "deformable_detr": _Family("deformable_detr"),
    "detr": _Family("detr"),
    "rt_detr": _Family("rt_detr", by_use_focal_loss=True),
    "d_fine": _Family("d_fine", by_use_focal_loss=True, as_dict=True),
    "rf_detr": _Family("rf_detr"),
    "mask2former": _Family("detr", masks=True),
}


class HungarianMatcher(nn.Module):
    """One-to-one matching of predictions and targets, a drop-in for the class of DETR and its family.

    Argument names and defaults are those of the originals, including weights of 1. Differences: all images, and with
    `match_all` all layers, are matched in one call with one transfer to the host; predictions that are not finite stay
    unmatched with a warning, where the originals fail or match them; formulas are computed in float32 under autocast.

    Args:
        cost_class, cost_bbox, cost_giou: weights of class, L1 and GIoU cost.
        focal_alpha: alpha of the focal class cost, as DINO and RF-DETR call it. Unused by "detr" and "mask2former".
        preset: the original that formula and result follow:
            "dino" (GIoU with its 1e-6), "deformable_detr": focal class cost;
            "detr": softmax class cost;
            "rt_detr": either, selected by `use_focal_loss`;
            "d_fine", also for RT-DETRv2 and DEIM: the same, and `forward` returns {"indices": ...};
            "rf_detr": focal class cost with logsigmoid;
            "mask2former": softmax class cost, and masks at random points instead of boxes.
        weight_dict: the weights as RT-DETR and D-FINE pass them, with the keys cost_class, cost_bbox and cost_giou.
        use_focal_loss: for RT-DETR and D-FINE: focal class cost instead of softmax.
        alpha: `focal_alpha` as RT-DETR and D-FINE call it.
        gamma: exponent of the focal class cost.
        cost_mask, cost_dice, num_points: for Mask2Former: weights of the two mask costs, and the number of points.
        check: "warn" (RuntimeWarning), "raise" (ValueError with SciPy's message) or "none" if predictions, targets or
            costs are not finite.
        ties: "lowest" or "scipy", between matchings of equal cost, as in `dino_kernels.linear_sum_assignment`.
        backend: passed to `dino_kernels.hungarian_match`.

    Raises:
        ValueError, TypeError: an argument is not of these values, all weights are 0, masks have no points, or
            `cost_class` is a dictionary.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        focal_alpha: float = 0.25,
        *,
        preset: str = "dino",
        weight_dict: Mapping[str, float] | None = None,
        use_focal_loss: bool = False,
        alpha: float | None = None,
        gamma: float = 2.0,
        cost_mask: float = 1,
        cost_dice: float = 1,
        num_points: int = 0,
        check: Check = "warn",
        ties: Ties = "lowest",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(preset, str) or preset not in FAMILIES:
            raise ValueError(f"{OP}: preset must be one of {', '.join(FAMILIES)}, got {preset!r}")
        check_choice(OP, "backend", backend, ("auto", *backends.modules))
        check_choices(OP, ties, check)
        check_flag(OP, "use_focal_loss", use_focal_loss)
        if isinstance(cost_class, Mapping):
            raise TypeError(f"{OP}: cost_class must be a number, got a dictionary. Pass it as weight_dict=")
        if weight_dict is not None:
            if not isinstance(weight_dict, Mapping):
                raise TypeError(f"{OP}: weight_dict must be a dictionary, got {weight_dict!r}")
            missing = [name for name in ("cost_class", "cost_bbox", "cost_giou") if name not in weight_dict]
            if missing:
                raise ValueError(f"{OP}: weight_dict must have {missing[0]!r}, got {sorted(weight_dict)}")
            cost_class, cost_bbox, cost_giou = (weight_dict[f"cost_{part}"] for part in ("class", "bbox", "giou"))
        family = FAMILIES[preset]
        others = {"cost_mask": cost_mask, "cost_dice": cost_dice}
        weights = {"cost_class": cost_class} | (
            others if family.masks else {"cost_bbox": cost_bbox, "cost_giou": cost_giou}
        )
        for name, number in (weights | {"focal_alpha": focal_alpha if alpha is None else alpha}).items():
            check_number(OP, name, number)
        check_number(OP, "gamma", gamma, 0)
        check_count(OP, "num_points", num_points)
        if not any(weights.values()):
            raise ValueError(f"{OP}: all weights are 0. Give at least one cost a weight")
        if family.masks and num_points < 1:
            raise ValueError(f"{OP}: num_points must be at least 1 (Mask2Former trains with 12544), got {num_points}")
        self.preset = preset
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou
        self.cost_mask, self.cost_dice, self.num_points = cost_mask, cost_dice, num_points
        self.alpha = self.focal_alpha = focal_alpha if alpha is None else alpha
        self.gamma = gamma
        self.use_focal_loss = use_focal_loss
        self.check: Check = check
        self.ties: Ties = ties
        self.backend = backend
        self._family = family

    @torch.no_grad()
    def forward(
        self, outputs: Mapping[str, Any], targets: Targets, group_detr: int = 1
    ) -> list[Pair] | dict[str, list[Pair]]:
        """Match the predictions of one layer.

        Args:
            outputs: `pred_logits` [B, Q, C] (or `logits`) and `pred_boxes` [B, Q, 4] (cx, cy, w, h), or, for
                "mask2former", `pred_masks` [B, Q, H, W]; other keys are ignored.
            targets: per image `labels` (or `class_labels`) [T] and `boxes` [T, 4], or `masks` [T, H', W'];
                or `PackedTargets`, except with masks.
            group_detr: for RF-DETR and Group DETR: number of groups of queries, each matched separately.

        Returns:
            Per image (query [R], target [R]), int64 on the CPU, queries ascending; for "d_fine" {"indices": that}.

        Raises:
            ValueError, TypeError: an argument is malformed; with check="raise", it is not finite.
        """
        pairs = self.match_all([outputs], targets, group_detr)[0]
        return {"indices": pairs} if self._family.as_dict else pairs

    @torch.no_grad()
    def match_all(
        self, outputs: Sequence[Mapping[str, Any]], targets: Targets, group_detr: int = 1
    ) -> list[list[Pair]]:
        """Match the predictions of many layers at once, for example `[outputs, *outputs["aux_outputs"]]`.

        Args:
            outputs: those of every layer, as in `forward`; they may differ in Q.
            targets, group_detr: as in `forward`.

        Returns:
            For each layer the pairs of each image, as in `forward`, never in a dictionary.
        """
        if isinstance(outputs, Mapping):
            raise TypeError(f"{OP}: match_all takes a list with the outputs of each layer, got one. Pass [outputs]")
        if not outputs:
            return []
        check_count(OP, "group_detr", group_detr, least=1)
        all_logits = [_output(output, "pred_logits", "logits") for output in outputs]
        with_boxes = not self._family.masks and (self.cost_bbox != 0 or self.cost_giou != 0)
        packed = _pack(targets, all_logits[0].device, with_boxes)
        formula: dict[str, Any] = {"alpha": self.alpha, "gamma": self.gamma}
        if self._family.by_use_focal_loss:
            formula["class_cost"] = "focal" if self.use_focal_loss else "softmax"
        match = hungarian_match(
            [_grouped(logits, group_detr) for logits in all_logits],
            [_grouped(_output(output, "pred_boxes"), group_detr) for output in outputs] if with_boxes else None,
            packed,
            preset=self._family.formula,
            weights=(self.cost_class, *((self.cost_bbox, self.cost_giou) if with_boxes else (0.0, 0.0))),
            extra_cost=self._mask_cost(outputs, targets, group_detr) if self._family.masks else None,
            ties=self.ties,
            check="none",
            backend=self.backend,
            **formula,
        )
        if self.check != "none":
            match = _on_host(match)
            report_status(OP, match.status, self.check)
        sets = pairs_of(match, packed)
        if group_detr == 1:
            return sets
        groups = [sets[start : start + group_detr] for start in range(0, len(sets), group_detr)]
        return [_joined(some, logits.shape[1] // group_detr) for some, logits in zip(groups, all_logits, strict=True)]

    def _mask_cost(self, outputs: Sequence[Mapping[str, Any]], targets: Targets, group_detr: int) -> Tensor:
        """Return the cost of masks, [G, N, Q], padded to the largest Q; padding is never matched."""
        if isinstance(targets, PackedTargets):
            raise TypeError(f"{OP}: targets must be dictionaries with masks, got PackedTargets. Pass the dictionaries")
        costs = [
            mask_cost(_output(output, "pred_masks"), targets, self.num_points, self.cost_mask, self.cost_dice)
            for output in outputs
        ]
        costs = [part for cost in costs for part in cost.chunk(group_detr, 1)]
        queries = max(cost.shape[1] for cost in costs)
        return torch.stack([nn.functional.pad(cost, (0, queries - cost.shape[1])) for cost in costs])

    def extra_repr(self) -> str:
        names = ("mask", "dice") if self._family.masks else ("bbox", "giou")
        weights = ", ".join(f"cost_{name}={getattr(self, f'cost_{name}')}" for name in ("class", *names))
        return f"preset={self.preset!r}, {weights}"


def _output(output: Mapping[str, Any], *names: str) -> Tensor:
    """Return the tensor of a layer under the first of some names that it has."""
    if type(output) is not dict and not isinstance(output, Mapping):  # the second takes longer
        raise TypeError(f"{OP}: outputs must be a dictionary with {names[0]!r}, got {type(output).__name__}")
    for name in names:
        tensor = output.get(name)
        if type(tensor) is Tensor or isinstance(tensor, Tensor):
            return tensor
    found = {key: type(value).__name__ for key, value in output.items()}
    raise TypeError(f"{OP}: outputs must have the tensor {' or '.join(map(repr, names))}, got {found}")


def _pack(targets: Targets, device: torch.device, with_boxes: bool) -> PackedTargets:
    if isinstance(targets, PackedTargets):
        return targets
    dictionaries = isinstance(targets, Sequence) and all(
        type(target) is dict or isinstance(target, Mapping) for target in targets
    )
    # transformers has another name for labels.
    other_name = dictionaries and len(targets) > 0 and "labels" not in targets[0] and "class_labels" in targets[0]
    label_key = "class_labels" if other_name else "labels"
    if dictionaries and not with_boxes:  # unused boxes may have any form
        targets = [{key: target[key] for key in target if key == label_key} for target in targets]
    return PackedTargets.pack(targets, device=device, label_key=label_key)


def _grouped(predictions: Tensor, groups: int) -> Tensor:
    """Return a view of [B, groups * Q, n] as [groups, B, Q, n]; the same tensor for one group."""
    if groups == 1 and predictions.dim() == 3:
        return predictions
    if predictions.dim() != 3 or predictions.shape[1] % groups != 0:
        raise ValueError(
            f"{OP}: predictions must be [B, Q, n] with Q a multiple of group_detr = {groups}, "
            f"got {list(predictions.shape)}"
        )
    return predictions.unflatten(1, (groups, predictions.shape[1] // groups)).transpose(0, 1)


def _joined(groups: list[list[Pair]], queries: int) -> list[Pair]:
    """Return the pairs of groups, each of so many queries, as pairs of all queries."""
    shifted = [[(query + queries * number, target) for query, target in group] for number, group in enumerate(groups)]
    return [
        (torch.cat([query for query, _ in of_image]), torch.cat([target for _, target in of_image]))
        for of_image in zip(*shifted, strict=True)
    ]


def _on_host(match: Match) -> Match:
    """Move queries and status to the CPU, in one transfer."""
    if match.status.device.type == "cpu":
        return match
    numbers = torch.cat([match.query_idx.flatten(), match.status.flatten()]).cpu()
    query, status = numbers.split([match.query_idx.numel(), match.status.numel()])
    return match._replace(query_idx=query.view_as(match.query_idx), status=status.view_as(match.status))
