"""The folder of a run, with checkpoints that are either complete or absent."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dino.common.files import flush, make_folder, write_text_whole
from dino.training.step import TrainingError

_CHECKPOINT = re.compile(r"step-\d{8,}")
_UNFINISHED = ".unfinished-"
_STATE = "state.json"
_OWN = (
    *("checkpoints", "last", "best", "final", "final_ema", "tensorboard", "evaluation"),
    *("config.json", "log.csv", "curves.png"),
)


class RunFolder:
    """A run's files under `path`:

    checkpoints/step-00001200/   model and state; complete as soon as it has that name
    last                         link to the newest checkpoint
    best/, final/, final_ema/    models
    config.json, log.csv, curves.png, tensorboard/
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def checkpoint(self, *, resume: bool, overwrite: bool) -> Path | None:
        """Return the checkpoint to resume from; None for a new run. Nothing is changed.

        Raises:
            ValueError: the folder holds an earlier run with a checkpoint or model, and neither `resume` nor `overwrite`
                is set.
        """
        found = self._found()
        has_run = bool(set(found) & {"best", "final"} or self._all())
        if has_run and not resume and not overwrite:
            raise ValueError(
                f"output: {self.path} holds an earlier run ({', '.join(found)}). Pass --resume to continue it, "
                "--overwrite to delete it, or another --output"
            )
        return self.last_complete() if resume else None

    def prepare(self, *, overwrite: bool) -> None:
        """Make the folder; delete what a killed run left unfinished, and with `overwrite` an earlier run."""
        if overwrite:
            for name in self._found():
                _delete(self.path / name)
        make_folder(self.path, "output")
        for unfinished in self.checkpoints.glob(f"{_UNFINISHED}*"):
            _delete(unfinished)

    def _found(self) -> list[str]:
        return [name for name in _OWN if os.path.lexists(self.path / name)]

    def last_complete(self) -> Path | None:
        """Return the checkpoint of the highest step whose files all have their full size."""
        return next((checkpoint for checkpoint in reversed(self._all()) if _is_complete(checkpoint)), None)

    def write(self, step: int, write_files: Callable[[Path], None], state: dict[str, Any], keep: int) -> Path:
        """Write a checkpoint and delete all but the last `keep`.

        A kill at any moment leaves only complete checkpoints.

        Args:
            step: step of the checkpoint, which names it.
            write_files: writes everything but the state into a folder.
            state: JSON values; the file sizes are added.
            keep: number of checkpoints to keep, at least 1.

        Raises:
            TrainingError: the checkpoint cannot be written.
        """
        final = self._of(step)
        try:
            try:
                self._write(final, write_files, state)
            except (OSError, SafetensorError):
                self.keep_last(1)  # the disk may be full
                self._write(final, write_files, state)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"the checkpoint of step {step} could not be written to {self.checkpoints}: {error}. Free some space; "
                "an earlier one is complete, from which --resume continues"
            ) from error
        self.keep_last(keep)
        return final

    def _write(self, final: Path, write_files: Callable[[Path], None], state: dict[str, Any]) -> None:
        unfinished = self.checkpoints / f"{_UNFINISHED}{final.name}"
        try:
            _delete(unfinished)
            unfinished.mkdir(parents=True)
            write_files(unfinished)
            sizes = {
                str(file.relative_to(unfinished)): file.stat().st_size
                for file in sorted(unfinished.rglob("*"))
                if file.is_file()
            }
            (unfinished / _STATE).write_text(json.dumps({**state, "files": sizes}), encoding="utf-8")
            for entry in (*unfinished.rglob("*"), unfinished):
                flush(entry)
            _delete(final)
            os.rename(unfinished, final)
            flush(self.checkpoints)
            self._link_last(final)
        except (OSError, SafetensorError):
            _delete(unfinished)
            raise

    def keep_last(self, count: int) -> None:
        """Delete the checkpoints before the last `count` complete ones, at least 1, with what a kill left of them."""
        every = self._all()
        kept = [checkpoint for checkpoint in every if _is_complete(checkpoint)][-count:]
        for old in every[: every.index(kept[0])] if len(kept) == count else []:
            _delete(old)

    def update(self, step: int, **entries: Any) -> None:
        """Replace entries of the state of a step's checkpoint, if there is a complete one."""
        checkpoint = self._of(step)
        if _is_complete(checkpoint):
            write_text_whole(checkpoint / _STATE, json.dumps(self.state(checkpoint) | entries))

    def state(self, checkpoint: Path) -> dict[str, Any]:
        """Return the state that a checkpoint was written with."""
        return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))

    def _of(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08}"

    def _all(self) -> list[Path]:
        if not self.checkpoints.exists():
            return []
        found = [path for path in self.checkpoints.iterdir() if _CHECKPOINT.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _link_last(self, checkpoint: Path) -> None:
        new = self.path / ".last"
        new.unlink(missing_ok=True)
        new.symlink_to(checkpoint.relative_to(self.path))
        os.replace(new, self.path / "last")


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
