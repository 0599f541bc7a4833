"""Save and restore the complete state of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dino.checkpoint import save_model
from dino.checkpoint.find import SIZE
from dino.common.distributed import (
    device_name,
    full_model_state,
    full_optimizer_state,
    load_full_model_state,
    load_full_optimizer_state,
)
from dino.common.rng import rng_state, seed_process, set_rng_state
from dino.common.text import shorten
from dino.training.run import Run, RunState
from dino.training.step import TrainingError

_FORMAT = 1


def save_checkpoint(run: Run) -> Path:
    """Write a checkpoint of the run as it is now. Collective.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainingError: the checkpoint cannot be written.
    """
    weights = full_model_state(run.model)
    optimizer = full_optimizer_state(run.model, run.optimizer)
    ema = None if run.ema is None else run.ema.full_state()
    generators = run.ranks.gather(rng_state(run.ranks.device))

    def write_files(folder: Path) -> None:
        _write_model(run, folder, weights)
        save_file(optimizer, folder / "optimizer.safetensors")
        states = {
            f"{rank}.{name}": state for rank, (_, tensors) in enumerate(generators) for name, state in tensors.items()
        }
        save_file(states, folder / "rng.safetensors")
        if ema is not None:
            save_file(ema, folder / "ema.safetensors")

    # A failure is raised on all processes; otherwise the others would wait in the next step for one that has ended.
    return run.ranks.on_first(
        lambda: run.folder.write(
            run.state.step, write_files, _state(run, [values for values, _ in generators]), run.config.keep_checkpoints
        )
    )


def save_named(run: Run, name: str, **extra: Any) -> None:
    """Write the model as it is now to a folder of the run. Collective.

    Raises:
        TrainingError: it cannot be written.
    """
    weights = full_model_state(run.model)
    folder, extra = run.folder.path / name, {"step": run.state.step, "epoch": run.fraction_of_epochs, **extra}

    def write() -> None:
        try:
            _write_model(run, folder, weights, **extra)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{folder} could not be written: {error}. Free some space and continue with --resume"
            ) from error

    run.ranks.on_first(write)


def restore(run: Run, checkpoint: Path) -> None:
    """Load a checkpoint into a run: weights, optimiser, averages, random generators, position in the data. Collective.

    Raises:
        TrainingError: the checkpoint has another format, model, data set, or, within an epoch, another seed.
    """
    saved = run.folder.state(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    _check(run, checkpoint, saved, weights)
    run.state = RunState(**saved["run"])
    run.finish_epoch()  # if a larger batch is more than the images left
    load_full_model_state(run.model, weights)
    load_full_optimizer_state(run.model, run.optimizer, load_file(checkpoint / "optimizer.safetensors"))
    if run.ema is not None:
        averages = checkpoint / "ema.safetensors"
        run.ema.load(load_file(averages) if averages.exists() else weights, saved["ema_updates"])
    run.step.precision.load_state(saved["scaler"])
    _load_generators(run, saved["generators"], checkpoint)


def _check(run: Run, checkpoint: Path, saved: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Raise TrainingError if the run cannot continue from a checkpoint. Nothing is changed before."""
    if saved.get("format") != _FORMAT:
        raise TrainingError(f"{checkpoint} was written by another version. Start a new run from it with --finetune")
    before, now = (
        (config.get("val_fraction", 0), config["seed"]) for config in (saved["config"], run.config.to_dict())
    )
    if before != now and (before[0] != now[0] or now[0] > 0):
        raise TrainingError(
            f"{checkpoint} was made with --val-fraction {before[0]:g} and --seed {before[1]}, which choose the "
            f"validation images; now they are {now[0]:g} and {now[1]}. Resume with the same, or start a new run with "
            "--finetune"
        )
    here = len(run.data.train)
    if saved["num_images"] != here:
        raise TrainingError(
            f"{checkpoint} was made with {saved['num_images']} training images, and now there are {here}. Resume with "
            "the same data, or start a new run with --finetune"
        )
    if saved.get("data", _fingerprint(run)) != _fingerprint(run):  # older checkpoints have none
        raise TrainingError(
            f"{checkpoint} was made with other images or classes than those of {run.config.data}. Resume with the same "
            "data, or start a new run with --finetune"
        )
    seed = saved["config"]["seed"]
    if saved["run"]["images"] > 0 and seed != run.config.seed:
        raise TrainingError(
            f"--seed is {run.config.seed}, but {checkpoint} is in the middle of an epoch shuffled with seed {seed}: "
            "with another, images would be read twice or never. "
            f"Pass --seed {seed}, or change the seed at the end of an epoch"
        )
    own = run.model.state_dict()
    wrong = sorted(name for name in {*own, *weights} if _shape(own.get(name)) != _shape(weights.get(name)))
    if wrong:
        raise TrainingError(
            f"{checkpoint} has another model: {shorten(wrong, 5)} differ. Resume with the options of config.json "
            "there, or start a new run with --finetune"
        )


def _write_model(run: Run, folder: Path, weights: dict[str, Tensor], **extra: Any) -> None:
    size = {"short_side": max(run.config.short_sides), "long_side": run.config.long_side}
    save_model(run.model, folder, run.data.categories, {**extra, SIZE: size}, tensors=weights)


def _state(run: Run, generators: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "run": dataclasses.asdict(run.state),
        "num_images": len(run.data.train),
        "data": _fingerprint(run),
        "config": run.config.to_dict(),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": device_name(run.ranks.device),
            "processes": run.ranks.size,
        },
        "scaler": run.step.precision.state(),
        "ema_updates": run.ema.updates if run.ema is not None else 0,
        "generators": generators,
    }


def _fingerprint(run: Run) -> str:
    """Return a hash of the ids of the training images, in order, and of the classes."""
    content = [run.data.train.index.image_ids.tolist(), run.data.categories.to_json()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load_generators(run: Run, states: list[dict[str, Any]], checkpoint: Path) -> None:
    rank = run.ranks.rank
    if len(states) != run.ranks.size:
        # The states are of another number of processes. Each process needs random numbers that differ from the others'.
        seed_process(run.config.seed + rank + 1000 * run.state.step)
        return
    tensors = load_file(checkpoint / "rng.safetensors").items()
    own = {name.removeprefix(f"{rank}."): state for name, state in tensors if name.startswith(f"{rank}.")}
    set_rng_state(states[rank], own, run.ranks.device)


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
