"""The losses of a batch, by official names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

KINDS = ("loss_ce", "loss_bbox", "loss_giou", "loss_xy", "loss_hw", "cardinality_error")
NUM_TRAINED = 3
"""The first kinds have a gradient and a weight; the others are logged only."""


@dataclass(frozen=True, eq=False)
class Losses(Mapping[str, Tensor]):
    """The unweighted losses of a batch: one table for training, and a mapping from the official names for logs.

    The official names are `loss_ce`, `loss_bbox`, `loss_giou`, `loss_xy`, `loss_hw` and `cardinality_error` of the last
    layer, with `_0`, `_1`... of earlier layers, `_interm` of the encoder, `_dn`, `_dn_0`... of denoising; and
    `class_error`. Those of a hybrid branch end with `_hybrid`, those of the routes of `multi_route` with `_ffn` and
    `_instructed`.
    """

    table: Tensor  # [KINDS, sets]: decoder layers, the encoder unless queries are static, hybrid, routes, denoising
    class_error: Tensor  # [] percent
    num_layers: int  # of the decoder
    num_hybrid: int = 0  # sets of the hybrid branch: its decoder layers and encoder
    num_routes: int = 0  # sets of the routes: the encoder, and the decoder layers of both; not their denoising

    @property
    def first_denoising(self) -> int:
        """Index of the first denoising set."""
        return self.table.shape[1] - self.num_layers * (3 if self.num_routes else 1)

    @property
    def first_route(self) -> int:
        """Index of the first set of the routes."""
        return self.first_denoising - self.num_routes

    @property
    def first_hybrid(self) -> int:
        """Index of the first hybrid set; an encoder's set precedes it, at `num_layers`."""
        return self.first_route - self.num_hybrid

    def detach(self) -> Losses:
        """Return the same losses without gradient."""
        return replace(self, table=self.table.detach())

    def not_finite(self) -> list[str]:
        """Return the official names of the trained losses that are not finite. Synchronises."""
        broken = (~self.table[:NUM_TRAINED].isfinite()).tolist()
        return [name for name, (row, column) in self._index.items() if row < NUM_TRAINED and broken[row][column]]

    @cached_property
    def _index(self) -> dict[str, tuple[int, int]]:
        layers = [*(f"_{layer}" for layer in range(self.num_layers - 1)), ""]
        encoder = ["_interm"] * (self.first_hybrid - self.num_layers)
        hybrid = [f"{name}_hybrid" for name in (*layers, "_interm")][: self.num_hybrid]
        of_routes = [f"{layer}_{route}" for route in ("ffn", "instructed") for layer in layers]
        routes = ["_interm_instructed", *of_routes][-self.num_routes :] if self.num_routes else []
        denoising = [f"_dn{layer}" for layer in (*layers, *(of_routes if routes else ()))]
        sets = [*layers, *encoder, *hybrid, *routes, *denoising]
        return {f"{kind}{name}": (i, j) for i, kind in enumerate(KINDS) for j, name in enumerate(sets)}

    def __getitem__(self, name: str) -> Tensor:
        return self.class_error if name == "class_error" else self.table[self._index[name]]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._index, "class_error"])

    def __len__(self) -> int:
        return len(self._index) + 1
