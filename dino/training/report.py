"""The texts of a run: how it starts, how it stands, how it ended, and what to do when it cannot go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from dino.common.distributed import Ranks, device_name
from dino.data import Batch
from dino.training.console import Pace, duration
from dino.training.run import Run
from dino.training.run_folder import RunFolder
from dino.training.step import SkippedStep


def greeting(run: Run) -> str:
    """What is about to be trained, on what, and how long."""
    config, ranks = run.config, run.ranks
    parameters = sum(p.numel() for p in run.model.parameters())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    data = run.data
    processes = f" x {ranks.size} processes ({config.strategy})" if ranks.size > 1 else ""
    drops = ", ".join(str(epoch) for epoch in config.drops if epoch < config.epochs)
    drops = f"; learning rate x 0.1 after epoch {drops}" if drops else ""
    precision = "" if config.amp == "off" else f", {config.amp}"
    return "\n".join(
        [
            f"model: {config.model.backbone}, {parameters / 1e6:.1f} M parameters ({trained / 1e6:.1f} M trained), "
            f"{data.categories.num_classes} classes",
            f"data: {len(data.train):,} images to train on, {len(data.valid):,} to validate on ({config.data})",
            f"effective batch: {run.images_per_step} images = {config.batch_size} x {config.accumulate} accumulated"
            f"{processes}, on {device_name(ranks.device)}{precision}",
            f"length: {config.epochs} epochs of {run.steps_per_epoch:,} steps, {run.steps_left:,} to go{drops}",
            f"output: {run.folder.path}",
        ]
    )


def changes(run: Run, saved: dict[str, Any]) -> list[str]:
    """The options that differ from those that a checkpoint was made with, one line each."""
    here = run.config.to_dict()
    return [
        f"changed since the checkpoint: {name} {saved[name]} -> {here[name]}"
        for name in here
        if name in saved and saved[name] != here[name] and name not in ("resume", "overwrite", "output")
    ]


def status(run: Run, pace: Pace, evaluations_left: int) -> str:
    """One line: where the run is, its losses, its speed, and the time left."""
    state = run.state
    memory = f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if run.ranks.device.type == "cuda" else ""
    best = f"  AP {100 * state.best['AP']:.1f}" if state.best else ""
    losses = "  ".join(f"{name.removeprefix('loss_')} {pace.smoothed(name):.3f}" for name in _SHOWN)
    left = duration(pace.seconds_left(run.steps_left, evaluations_left))
    # What matters most comes first: a narrow terminal cuts the rest.
    return (
        f"epoch {min(state.epoch + 1, run.config.epochs)}/{run.config.epochs}"
        f"  step {state.step}/{state.step + run.steps_left}  loss {pace.smoothed('loss'):.2f}{best}  {left} left"
        f"  {pace.images_per_second:.1f} images/s{memory}  lr {run.optimizer.param_groups[0]['lr']:.1e}  {losses}"
    )


_SHOWN = ("loss_ce", "loss_bbox", "loss_giou", "loss_denoising")


def evaluation_line(entry: dict[str, float], is_best: bool) -> str:
    """The main numbers of an evaluation."""
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    numbers = "  ".join(f"{name.removeprefix('AP_')} {_per_cent(entry[name])}" for name in names)
    averaged = f"  (averaged weights: AP {_per_cent(entry['AP_ema'])})" if "AP_ema" in entry else ""
    return f"epoch {entry['epoch']:g}: {numbers}{averaged}{'  best so far' if is_best else ''}"


def closing(run: Run) -> str:
    """What came out, where it is, and what to do next."""
    state, path = run.state, run.folder.path
    skipped = f", {state.skipped} of them skipped" if state.skipped else ""
    lines = [f"finished: {state.step:,} steps{skipped} in {duration(state.seconds)}"]
    if state.best is not None:
        which = ", averaged weights" if state.best["averaged"] else ""
        numbers = f"AP {_per_cent(state.best['AP'])}, epoch {state.best['epoch']:g}{which}"
        lines.append(f"best model: {path / 'best'} ({numbers})")
    lines.append(f"final model: {path / 'final'}")
    files = [name for name in ("log.csv", "curves.png", "final_ema") if (path / name).exists()]
    lines.append(f"also there: {', '.join(files)}; checkpoints to go on from: {path / 'last'}")
    lines.append("next:")
    lines.append(f"  python -m dino predict --checkpoint {path} PICTURES")
    lines.append(f"  python -m dino evaluate --checkpoint {path} --data {run.config.data}")
    return "\n".join(lines)


def resume_command(folder: RunFolder, ranks: Ranks) -> str:
    """The command that goes on with a run; its other options are in the run's config.json."""
    start = "python" if ranks.size == 1 else f"torchrun --nproc-per-node {ranks.size}"
    return f"{start} -m dino train --output {folder.path} --resume"


def stopped(run: Run, signal: str) -> str:
    """After a stop on request."""
    where = f"at step {run.state.step}; its checkpoint is {run.folder.path / 'last'}"
    return f"stopped by {signal} {where}\ngo on with: {resume_command(run.folder, run.ranks)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's or the machine's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def out_of_memory(run: Run, batches: Sequence[Batch]) -> str:
    """Which step was too large, and the options that make it smaller."""
    config = run.config
    shapes = " and ".join("x".join(map(str, batch.images.shape)) for batch in batches)
    boxes = max((batch.targets.max_targets for batch in batches), default=0)
    half = max(1, config.batch_size // 2)
    fewer = f"--batch-size {half} --accumulate {config.accumulate * config.batch_size // half}"
    options = [f"{fewer} (same effective batch)"] if config.batch_size > 1 else []
    options += [] if config.model.gradient_checkpointing else ["--model.gradient-checkpointing"]
    options += ["--amp bf16"] if config.amp == "off" else []
    options += ["a smaller --long-side and --short-sides"]
    return (
        f"out of memory in step {run.state.step + 1}: images {shapes}, up to {boxes} boxes each. What helps: "
        f"{'; '.join(options)}. {last_checkpoint(run)}"
    )


def never_finite(run: Run, count: int, last: SkippedStep) -> str:
    """Many steps in a row had losses or gradients that were not finite."""
    better = {"fp16": "--amp bf16 or off; ", "bf16": "--amp off; ", "off": ""}[run.config.amp]
    return (
        f"{count} steps in a row were not finite, the last one {run.state.step}: {last}. What helps: {better}a lower "
        f"--lr, or --warmup-steps 1000; a look at the boxes of these images. {last_checkpoint(run)}. If the weights "
        "are broken there already, delete it, and the one before is taken"
    )


def last_checkpoint(run: Run) -> str:
    """Where the last complete checkpoint is, and how to go on from it."""
    checkpoint = run.folder.last_complete()
    if checkpoint is None:
        return "There is no checkpoint yet"
    return f"The last checkpoint is {checkpoint}; go on with: {resume_command(run.folder, run.ranks)}"


def unreadable_images(batch: Batch) -> list[str]:
    """A line for each image of a batch that could not be read."""
    return [f"left out: {problem}" for problem in batch.problems]


def skipped_step(step: int, skipped: SkippedStep, scale: float | None) -> str:
    """One line about a step that changed nothing."""
    scaled = f"; the loss scale is now {scale:g}" if scale is not None else ""
    return f"step {step} skipped: {skipped}{scaled}"


def _per_cent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
