"""What denoising groups cost in a training step: K + 2 n G queries, time by turns, and tensors kept for backward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.recipe import VARIANTS, training
from benchmarks.measure.race import cpu_stopwatch, race
from benchmarks.measure.tables import Table
from dino.checkpoint import build_model
from dino.data import Batch, build_loader
from dino.model.criterion import SetCriterion
from dino.training.run import load_data
from dino_kernels.tutorial.counting import count

COUNTED = ("no denoising", "2 groups", "DINO", "12 groups")
SECONDS = 40.0


def measure_groups(folder: Path, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Return a row per number of groups, on the first batch of the claims' training images, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = training(VARIANTS["DINO"], 0, folder, folder / "unused")
        data = load_data(dataclasses.replace(config, evaluate_every=0))
        batch = next(iter(build_loader(data.train, config.batch_size, train=False)))
        models = {name: build_model(VARIANTS[name].model).train() for name in COUNTED}
        forwards = {name: _forward(model, batch) for name, model in models.items()}
        calls = {name: partial(_step, models[name], forward) for name, forward in forwards.items()}
        timings = race(calls, cpu_stopwatch, seconds, least_laps=5)
    finally:
        torch.set_num_threads(threads)
    most = int(batch.targets.offsets.diff().max())
    rows = []
    for name, model in models.items():
        outputs = model(batch.images, batch.mask, batch.targets)
        layout = None if outputs.denoising is None else outputs.denoising.layout
        row = {"variant": name, "matching": outputs.logits.shape[2], "objects": most}
        row["groups"] = 0 if layout is None else int(layout.num_groups)
        row["queries"] = row["matching"] + (0 if layout is None else layout.num_queries)
        row["ms"] = round(1e3 * median(timings[name].samples), 1)
        row["time"] = round(1 / timings[name].speedup_over(timings[COUNTED[0]])[0], 3)
        rows.append(row | {"saved_mib": round(count(forwards[name], []).saved / 2**20, 1)})
    return rows


def _forward(model: torch.nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """Return what computes a loss."""
    criterion = SetCriterion(model.config)  # pyright: ignore[reportArgumentType]
    return lambda: criterion.weighted_total(criterion(model(batch.images, batch.mask, batch.targets), batch.targets))


def _step(model: torch.nn.Module, forward: Callable[[], Tensor]) -> None:
    model.zero_grad()
    forward().backward()


def groups_table(document: dict[str, Any]) -> Table:
    """Make a row per number of groups."""
    lines = [["groups G", "queries K + 2 n G", "step ms", "time", "kept for backward, MiB"]]
    for row in document.get("groups", []):
        queries = f"{row['matching']} + 2 x {row['objects']} x {row['groups']} = {row['queries']}"
        lines.append(
            [str(row["groups"]), queries, f"{row['ms']:.0f}", f"{row['time']:.2f}x", f"{row['saved_mib']:.0f}"]
        )
    return lines
