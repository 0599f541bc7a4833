"""The record of a run: log.csv, and TensorBoard files where the package is installed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dino.common.files import write_whole
from dino.evaluation.coco_metrics import NUMBERS
from dino.training.step import LOSS_PARTS

STEP_COLUMNS = ("lr", *LOSS_PARTS, "gradient_norm", "images_per_second", "skipped")
METRIC_COLUMNS = tuple(f"{name}{suffix}" for suffix in ("", "_ema") for name in NUMBERS)
COLUMNS = ("step", "epoch", *STEP_COLUMNS, *METRIC_COLUMNS)

Row = Mapping[str, float | int]


class Log:
    """Appends rows to log.csv and to TensorBoard's files.

    Rows of steps have `STEP_COLUMNS`, averaged since the row before; rows of evaluations have `METRIC_COLUMNS`.

    Args:
        folder: of the run.
        step: steps that are done; rows after them, from a run that went further and was interrupted, are dropped.
        evaluated: whether an evaluation after exactly `step` steps counts as done.
        tensorboard: whether to write TensorBoard's files too.
    """

    def __init__(self, folder: Path, *, step: int, evaluated: bool, tensorboard: bool) -> None:
        self._path = folder / "log.csv"
        kept = [row for row in _complete_rows(self._path) if _is_done(row, step, evaluated)]
        write_whole(self._path, lambda new: _write_rows(new, kept))
        self._board: Any = _board(folder, step) if tensorboard else None

    def write(self, step: int, epoch: float, values: Row) -> None:
        """Append a row; values that are no column go to TensorBoard alone."""
        row = {"step": step, "epoch": f"{epoch:.6g}"}
        row |= {name: f"{value:.6g}" for name, value in values.items() if name in COLUMNS}
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(_tag(name), value, step)
            self._board.flush()

    def close(self) -> None:
        """Finish TensorBoard's files."""
        if self._board is not None:
            self._board.close()


def tensorboard_is_installed() -> bool:
    return find_spec("tensorboard") is not None


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log.csv, without empty cells; a last row that a kill cut off is left out.

    A missing file has no rows.
    """
    return [
        {name: int(value) if name == "step" else float(value) for name, value in row.items() if value}
        for row in _complete_rows(path)
    ]


def _complete_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [{name: row.get(name) or "" for name in COLUMNS} for row in reader if row.get("step") and row.get("epoch")]


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _is_done(row: Mapping[str, str], step: int, evaluated: bool) -> bool:
    is_evaluation = any(row[name] for name in METRIC_COLUMNS)
    return int(row["step"]) < step or (int(row["step"]) == step and (evaluated or not is_evaluation))


def _board(folder: Path, step: int) -> Any:
    if not tensorboard_is_installed():
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _tag(name: str) -> str:
    group = "metrics" if name in METRIC_COLUMNS else "losses" if name in LOSS_PARTS else "training"
    return f"{group}/{name}"
