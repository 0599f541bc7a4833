"""Saving all that a run needs to go on as if it had never stopped, and going on."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dino.checkpoint import save_model
from dino.checkpoint.find import SIZE
from dino.common.distributed import device_name, fill, sharded_like, whole_on_cpu
from dino.common.rng import rng_state, seed_process, set_rng_state
from dino.training.optimizer import optimizer_tensors
from dino.training.run import Run, RunState
from dino.training.step import TrainingError

_FORMAT = 1


def save_checkpoint(run: Run) -> Path | None:
    """Write a checkpoint of the run as it is now; all processes must ask.

    Returns:
        Where it is, on the first process.

    Raises:
        TrainingError: it could not be written.
    """
    optimizer = whole_on_cpu(optimizer_tensors(run.model, run.optimizer), run.ranks)
    ema = None if run.ema is None else whole_on_cpu(run.ema.tensors, run.ranks)
    generators = run.ranks.gather(rng_state(run.ranks.device))
    weights = whole_weights(run)
    written: Path | TrainingError | None = None
    if run.ranks.first:

        def write_files(folder: Path) -> None:
            save_weights(run, folder, weights)
            save_file(optimizer, folder / "optimizer.safetensors")
            save_file(_tensors(generators), folder / "rng.safetensors")
            if ema is not None:
                save_file(ema, folder / "ema.safetensors")

        try:
            written = run.folder.write(
                run.state.step, write_files, _state(run, generators), run.config.keep_checkpoints
            )
        except TrainingError as error:
            written = error
    # The others learn of a failure, instead of waiting in the next step for a process that has ended.
    written = run.ranks.from_first(written)
    if isinstance(written, TrainingError):
        raise written
    return written


def whole_weights(run: Run) -> dict[str, Tensor] | None:
    """The weights put together, on the first process, if they are sharded; all processes must ask."""
    return whole_on_cpu(run.model.state_dict(), run.ranks) if run.sharded else None


def save_weights(run: Run, folder: Path, weights: dict[str, Tensor] | None, **extra: Any) -> None:
    """Write a model folder; `weights`, if there are any, are the whole of what the model has a part of."""
    model = run.model
    if run.unsharded is not None and weights is not None:
        model = run.unsharded
        model.load_state_dict(weights)
    size = {"short_side": max(run.config.short_sides), "long_side": run.config.long_side}
    save_model(model, folder, run.data.categories, {**extra, SIZE: size})


def go_on_from(run: Run, checkpoint: Path) -> None:
    """Take up a run at a checkpoint: weights, optimiser, averages, random numbers, position in the data.

    Raises:
        TrainingError: the checkpoint is of another model or of other data.
    """
    saved = run.folder.state(checkpoint)
    if saved.get("format") != _FORMAT:
        raise TrainingError(f"{checkpoint} was written by another version; use its model with --finetune")
    run.state = RunState(**saved["run"])
    if saved["num_images"] != len(run.data.train):
        raise TrainingError(
            f"{checkpoint} was made with {saved['num_images']} training images, and now there are "
            f"{len(run.data.train)}; go on with the same data, or start a new run with --finetune"
        )
    weights = load_file(checkpoint / "model.safetensors")
    own = run.model.state_dict()
    wrong = sorted(name for name in {*own, *weights} if _shape(own.get(name)) != _shape(weights.get(name)))
    if wrong:
        raise TrainingError(
            f"{checkpoint} has another model: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''} differ; go on "
            "with the options of config.json there, or start a new run with --finetune"
        )
    for name, tensor in own.items():
        fill(tensor, weights[name])
    _load_optimizer(run, load_file(checkpoint / "optimizer.safetensors"))
    if run.ema is not None:
        averages = checkpoint / "ema.safetensors"
        run.ema.load(load_file(averages) if averages.exists() else weights, saved["ema_updates"])
    run.step.precision.load_state(saved["scaler"])
    _load_generators(run, saved["generators"], checkpoint)
    # Whole steps of the size that they have now, which may differ from what it was.
    steps = run.state.images // run.images_per_step
    run.state.images = steps * run.images_per_step
    run.loader.sampler.epoch, run.loader.sampler.batch = run.state.epoch, steps * run.config.accumulate


def _state(run: Run, generators: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "run": dataclasses.asdict(run.state),
        "num_images": len(run.data.train),
        "config": run.config.to_dict(),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": device_name(run.ranks.device),
            "processes": run.ranks.size,
        },
        "scaler": run.step.precision.state(),
        "ema_updates": run.ema.updates if run.ema is not None else 0,
        "generators": [
            {name: value for name, value in state.items() if not isinstance(value, Tensor)} for state in generators
        ],
    }


def _tensors(generators: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        f"{rank}.{name}": value
        for rank, state in enumerate(generators)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _load_generators(run: Run, states: list[dict[str, Any]], checkpoint: Path) -> None:
    rank = run.ranks.rank
    if len(states) != run.ranks.size:
        # Other processes than before: no state fits, and each process needs numbers of its own.
        seed_process(run.config.seed + rank + 1000 * run.state.step)
        return
    state = dict(states[rank])
    for name, value in load_file(checkpoint / "rng.safetensors").items():
        if name.startswith(f"{rank}."):
            state[name.removeprefix(f"{rank}.")] = value
    set_rng_state(state, run.ranks.device)


def _load_optimizer(run: Run, tensors: dict[str, Tensor]) -> None:
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, quantity = name.rpartition(".")
        state.setdefault(parameter, {})[quantity] = value
    for name, parameter in run.model.named_parameters():
        if name in state:
            run.optimizer.state[parameter] = {
                # Counters are scalars and stay where they are.
                quantity: value if value.ndim == 0 else sharded_like(parameter.detach(), value)
                for quantity, value in state[name].items()
            }


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
