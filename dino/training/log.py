"""Record a run in log.csv, and in TensorBoard files if the package is installed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dino.common.files import write_whole
from dino.evaluation.coco_metrics import METRIC_NAMES
from dino.training.step import BRANCH_PARTS, LOSS_PARTS

LOSSES = (*LOSS_PARTS, *BRANCH_PARTS)
STEP_COLUMNS = ("lr", *LOSSES, "gradient_norm", "images_per_second", "waiting", "skipped")
METRIC_COLUMNS = tuple(f"{name}{suffix}" for suffix in ("", "_ema") for name in METRIC_NAMES)
COLUMNS = ("step", "epoch", *STEP_COLUMNS, *METRIC_COLUMNS)

Row = Mapping[str, float]


class Log:
    """Appends rows to log.csv and to TensorBoard files.

    Rows of steps have `STEP_COLUMNS`, averaged since the previous row; `waiting` is the share of their time in which
    the process waited for images. Rows of evaluations have `METRIC_COLUMNS`.

    Args:
        folder: the run's folder.
        step: completed steps; later rows, of a run that was interrupted after its last checkpoint, are dropped.
        evaluated: whether an evaluation after exactly `step` steps is completed.
        tensorboard: whether to write TensorBoard files too.
        losses: losses of the run's steps; those of `BRANCH_PARTS` among them have columns.
    """

    def __init__(
        self, folder: Path, *, step: int, evaluated: bool, tensorboard: bool, losses: Sequence[str] = LOSS_PARTS
    ) -> None:
        self._path = folder / "log.csv"
        self._columns = [name for name in COLUMNS if name not in BRANCH_PARTS or name in losses]
        kept = [
            row
            for row in read_log(self._path)
            if row["step"] < step or (row["step"] == step and (evaluated or not row.keys() & set(METRIC_COLUMNS)))
        ]
        write_whole(self._path, lambda new: self._append(new, [{name: name for name in self._columns}, *kept]))
        self._board: Any = None
        if tensorboard and tensorboard_is_installed():
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, epoch: float, values: Row) -> None:
        """Append a row."""
        self._append(self._path, [{"step": step, "epoch": epoch, **values}])
        if self._board is not None:
            for name, value in values.items():
                group = "metrics" if name in METRIC_COLUMNS else "losses" if name in LOSSES else "training"
                self._board.add_scalar(f"{group}/{name}", value, step)
            self._board.flush()

    def _append(self, path: Path, rows: Iterable[Mapping[str, float | str]]) -> None:
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_cell(row.get(name, "")) for name in self._columns] for row in rows)

    def close(self) -> None:
        """Close the TensorBoard files."""
        if self._board is not None:
            self._board.close()


def tensorboard_is_installed() -> bool:
    return find_spec("tensorboard") is not None


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the rows of a log.csv without empty cells, and without a last row that is incomplete after a crash.

    A missing file has no rows.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [
        {name: int(row[name]) if name == "step" else float(row[name]) for name in COLUMNS if row.get(name)}
        for row in rows
        if row.get("step") and row.get("epoch")
    ]


def _cell(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
