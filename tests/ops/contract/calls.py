"""Calls of every op, for the contract files: what each takes, returns, and how its results are compared.

A new op gets all contract tests with an entry in OPS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import dino_kernels
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.testing import (
    AssignmentCase,
    Case,
    MatchingCase,
    assignment_costs,
    matching_inputs,
    run,
    sample_inputs,
)
from tests.comparison import ORDERED

Inputs = dict[str, Any]  # keyword arguments of a public function
Results = dict[str, Tensor]
ATTENTION = ("ms_deform_attn", "fused_ms_deform_attn")
LEVELS, OTHER_LEVELS = ((9, 11), (5, 6)), ((8, 13), (4, 7))


def attention_inputs(
    op: str, device: str, dtype: torch.dtype = torch.float32, batch: int = 2, queries: int = 23, heads: int = 4,
    channels: int = 16, levels: tuple[tuple[int, int], ...] = LEVELS, points: int = 4, coordinates: int | None = None,
) -> Inputs:  # fmt: skip
    """Return arguments of an attention op; the fused one has boxes and a mask by default."""
    fused = op == "fused_ms_deform_attn"
    coordinates = coordinates or (4 if fused else 2)
    case = Case("contract", batch, queries, heads, channels, levels, (points,) * len(levels), coordinates, mask=fused)
    return sample_inputs(op, case, dtype, device)


def cost_inputs(
    op: str, device: str, dtype: torch.dtype = torch.float32, sets: int = 2, queries: int = 12, classes: int = 7,
    targets: tuple[int, ...] = (4, 0, 3), stage: str = "middle",
) -> Inputs:  # fmt: skip
    """Return arguments of `matching_cost` and `hungarian_match`, with an extra cost."""
    inputs = matching_inputs(MatchingCase("contract", sets, queries, classes, targets, stage), dtype, device)
    extra = torch.rand(sets, sum(targets), queries, generator=torch.Generator().manual_seed(1))
    return inputs | {"extra_cost": extra.to(device)}


def assignment_inputs(
    op: str, device: str, dtype: torch.dtype = torch.float32, problems: int = 3, rows: int = 5, columns: int = 9,
    kind: str = "hostile",
) -> Inputs:  # fmt: skip
    """Return arguments of `linear_sum_assignment`: each matrix has two problems, and rows of unused capacity."""
    cost = assignment_costs(AssignmentCase("contract", problems, rows, columns, kind), dtype, device)
    return {"cost": cost, "offsets": torch.tensor([0, rows // 2, rows - rows // 4], device=device)}


@dataclass(frozen=True)
class Op:
    """How the contract files call an op.

    `make` takes the op's name, a device, a dtype and sizes. `small` are sizes for Triton's interpreter, `large` ones
    that occupy several threads, `empty` ones of which nothing can be computed, and `steps` ones of calls that a
    compiled function takes one after the other. A tensor is named by its path, as in "targets.labels".
    """

    make: Callable[..., Inputs]
    tensors: tuple[str, ...]
    dtypes: tuple[str, ...]
    small: dict[str, Any]
    large: tuple[dict[str, Any], ...]
    empty: tuple[dict[str, Any], ...]
    steps: tuple[dict[str, Any], ...]
    dynamic: dict[str, tuple[int, ...]]  # path: dimensions that vary from step to step
    marked: tuple[dict[str, Any], ...]  # steps in which only these vary


_ATTENTION: dict[str, Any] = {
    "make": attention_inputs,
    "dtypes": ("fp32", "fp64", "bf16", "fp16"),
    "small": {"queries": 3, "heads": 1, "channels": 4, "levels": ((3, 4), (2, 2)), "points": 1},
    "large": (
        {"batch": 1, "queries": 411, "heads": 1, "channels": 36, "levels": ((14, 20), (7, 10))},
        {"batch": 2, "queries": 358, "heads": 8, "channels": 32, "levels": ((14, 20), (7, 10), (2, 4))},
        {"batch": 2, "queries": 11, "heads": 8, "channels": 32, "levels": ((14, 20), (7, 10))},
    ),
    "empty": ({"queries": 0}, {"batch": 0}, {"batch": 0, "queries": 0}, {"points": 0}),
    # No two sizes are equal: PyTorch would take equal ones for the same.
    "steps": ({"batch": 3, "queries": 17}, {"batch": 5, "queries": 29, "levels": OTHER_LEVELS}),
    "marked": ({"batch": 2, "queries": 17}, {"batch": 3, "queries": 29}, {"batch": 5, "queries": 6}),
}
_LEVEL_TABLE = ("spatial_shapes", "level_start_index")
_MATCHING: dict[str, Any] = {
    "make": cost_inputs,
    "tensors": ("logits", "boxes", "extra_cost", "targets.labels", "targets.boxes_cxcywh", "targets.offsets"),
    "dtypes": ("fp32", "fp64", "bf16", "fp16"),
    "small": {"queries": 6, "classes": 3, "targets": (2, 0, 3)},
    "large": ({"sets": 7, "queries": 97, "classes": 91, "targets": (4, 19), "stage": "late"},),
    "empty": ({"sets": 0}, {"queries": 0}, {"targets": ()}, {"targets": (0, 0)}),
    # 0 and 1 are special to PyTorch.
    "steps": (
        {"queries": 6, "targets": (2, 3)},
        {"queries": 6, "targets": (4, 3)},
        {"queries": 9, "targets": (0, 2)},
        {"queries": 5, "targets": (7, 3)},
    ),
    "dynamic": {
        **dict.fromkeys(("logits", "boxes"), (2,)),
        **dict.fromkeys(("targets.labels", "targets.boxes_cxcywh"), (0,)),
        "extra_cost": (1, 2),
    },
    "marked": (
        {"queries": 6, "targets": (4, 3)},
        {"queries": 9, "targets": (4, 4)},
        {"queries": 5, "targets": (1, 4)},
    ),
}
OPS = {
    "ms_deform_attn": Op(
        **_ATTENTION,
        tensors=("value", "sampling_locations", "attention_weights", *_LEVEL_TABLE),
        dynamic={"value": (0,), **dict.fromkeys(("sampling_locations", "attention_weights"), (0, 1))},
    ),
    "fused_ms_deform_attn": Op(
        **_ATTENTION,
        tensors=(
            *("value", "reference_points", "sampling_offsets", "attention_logits", "value_mask"),
            *_LEVEL_TABLE,
        ),
        dynamic={
            **dict.fromkeys(("value", "value_mask"), (0,)),
            **dict.fromkeys(("reference_points", "sampling_offsets", "attention_logits"), (0, 1)),
        },
    ),
    "matching_cost": Op(**_MATCHING),
    "linear_sum_assignment": Op(
        make=assignment_inputs,
        tensors=("cost", "offsets"),
        dtypes=("fp32", "fp64"),
        small={},
        large=({"problems": 23, "rows": 15, "columns": 40},),
        empty=({"problems": 0}, {"rows": 0}, {"columns": 0}),
        steps=({"rows": 4, "columns": 7}, {"rows": 9, "columns": 5}, {"rows": 3, "columns": 12}),
        dynamic={"cost": (1, 2)},
        marked=({"rows": 4, "columns": 7}, {"rows": 9, "columns": 5}, {"rows": 3, "columns": 12}),
    ),
    "hungarian_match": Op(**_MATCHING),
}


def get(inputs: Inputs, path: str) -> Any:
    name, _, field = path.partition(".")
    return getattr(inputs[name], field) if field else inputs[name]


def put(inputs: Inputs, path: str, tensor: Tensor) -> Inputs:
    """Return the call with another tensor at a path; it requires a gradient where the former one does."""
    name, _, field = path.partition(".")
    if field:
        return inputs | {name: replace(inputs[name], **{field: tensor})}
    return inputs | {name: tensor.requires_grad_(inputs[name].requires_grad)}


def tensors_of(op: str, inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    for path in OPS[op].tensors:
        if isinstance(tensor := get(inputs, path), Tensor):
            yield path, tensor


def options_of(op: str) -> dict[str, Any]:
    """Return the options with which a call returns all its results."""
    return {"full_output": True} if op in ("linear_sum_assignment", "hungarian_match") else {}


def call(op: str, inputs: Inputs, backend: str, **options: Any) -> Any:
    """Call the public function with all its results."""
    return getattr(dino_kernels, op)(**inputs, **options_of(op), **options, backend=backend)


def named(op: str, returned: Any) -> Results:
    return returned._asdict() if hasattr(returned, "_asdict") else {"output": returned}


def perform(op: str, inputs: Inputs, backend: str, grad_output: Tensor | None = None) -> Results:
    """Return all results of a call, gradients included."""
    if op in ATTENTION:
        return run(op, inputs, backend, grad_output).named()
    return named(op, call(op, inputs, backend))


def registered(op: str) -> Any:
    return getattr(torch.ops.dino_kernels, op).default


def prepared(op: str, inputs: Inputs, backend: str, **options: Any) -> tuple[Any, ...]:
    """Return the arguments of the registered op."""
    return (*ops()[op].prepare(**inputs, **options), backend)


def assert_same(results: Results, expected: Results) -> None:
    """Assert the same bits, except that any NaN is as good as another."""
    assert results.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(
            results[name], wanted, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_close(results: Results, expected: Results, backend: str) -> None:
    """Assert equal results up to rounding; integers are the same.

    Other addresses may get another kernel: on a GPU, one that adds a dot product's channels in another order.
    """
    assert results.keys() == expected.keys()
    for name, wanted in expected.items():
        rtol = atol = 0.0
        if wanted.is_floating_point():
            rtol = atol = 1e-6
            if backend not in ORDERED and wanted.dtype != torch.float64:
                rtol, atol = max(1e-5, torch.finfo(wanted.dtype).eps), 1e-5
        torch.testing.assert_close(
            results[name], wanted, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )
