"""Write the messages of a run: its start, progress and end, and advice when training cannot continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from dino.common.distributed import device_name
from dino.common.text import command_line, counted, memory_advice, percent
from dino.data import Batch
from dino.data.statistics import boxes_per_class, problems_and_notes
from dino.training.run import Run
from dino.training.step import SkippedStep

_SHOWN_WAITING = 0.05  # of the time of a step


def greeting(run: Run) -> str:
    """Describe the model, the data, the batch and the length of a run."""
    config, ranks, data = run.config, run.ranks, run.data
    parameters = sum(p.numel() for p in run.model.parameters())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    processes = f" x {ranks.size} processes ({config.strategy})" if ranks.size > 1 else ""
    drops = ", ".join(str(epoch) for epoch in config.drops if epoch < config.epochs)
    drops = f"; learning rate x 0.1 after epoch {drops}" if drops else ""
    valid = "none" if data.valid is None else f"{len(data.valid):,}"
    precision = "" if config.amp == "off" else f", {config.amp}"
    return "\n".join(
        [
            f"model: {config.model.backbone}, {parameters / 1e6:.1f} M parameters ({trained / 1e6:.1f} M trained), "
            f"{counted(data.categories.num_classes, 'class')}",
            f"data: {counted(len(data.train), 'image')} to train on, {valid} to validate on ({config.data})",
            *_data_lines(run),
            f"effective batch: {counted(run.images_per_step, 'image')} = {config.batch_size} x {config.accumulate} "
            f"accumulated{processes}, on {device_name(ranks.device)}{precision}",
            f"length: {counted(config.epochs, 'epoch', 'epochs')} of {counted(run.steps_per_epoch, 'step')}, "
            f"{run.steps_left:,} left{drops}",
            f"output: {run.folder.path}",
        ]
    )


def _data_lines(run: Run) -> list[str]:
    """Describe the format of the data, what was left out, and the boxes of each class."""
    data, config = run.data, run.config
    indexes = {"train": data.train.index} | ({} if data.valid is None else {"valid": data.valid.index})
    held = f"; valid is {config.val_fraction:g} of train, by seed {config.seed}" if config.val_fraction else ""
    lines = [f"{data.layout.format} ({data.layout.sources}){held}", *boxes_per_class(indexes)]
    return [f"  {line}" for line in (*lines, *problems_and_notes(list(indexes.values())))]


def changes(run: Run, saved: dict[str, Any]) -> list[str]:
    """Describe the options that differ from those of a checkpoint, one line each."""
    here = run.config.to_dict()
    return [
        f"changed since the checkpoint: {name} {saved[name]} -> {here[name]}"
        for name in here
        if name in saved and saved[name] != here[name] and name not in ("resume", "overwrite", "output")
    ]


def status(run: Run, values: Mapping[str, float]) -> str:
    """Describe loss, AP, speed and memory for the progress bar."""
    parts = [f"loss {values['loss']:.2f}"] if "loss" in values else []
    if run.state.history and run.state.best is not None:
        last = max(run.state.history[-1]["AP"], run.state.history[-1].get("AP_ema", 0.0))
        parts.append(f"AP {percent(last)} (best {percent(run.state.best['AP'])})")
    parts.append(f"{values['images_per_second']:.1f} images/s")
    if values["waiting"] >= _SHOWN_WAITING:
        parts.append(f"waiting {values['waiting']:.0%} for images")
    if run.ranks.device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return ", ".join(parts)


def evaluation_line(entry: Mapping[str, float], is_best: bool) -> str:
    """Describe the main metrics of an evaluation."""
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    metrics = "  ".join(f"{name.removeprefix('AP_')} {percent(entry[name])}" for name in names)
    averaged = f"  (averaged weights: AP {percent(entry['AP_ema'])})" if "AP_ema" in entry else ""
    return f"epoch {epochs(entry['epoch'])}: {metrics}{averaged}{'  best so far' if is_best else ''}"


def closing(run: Run) -> str:
    """Describe the results of a finished run, and the commands that use them."""
    state, path = run.state, run.folder.path
    skipped = f", {state.skipped} of them skipped" if state.skipped else ""
    lines = [f"finished: {counted(state.step, 'step')}{skipped} in {tqdm.format_interval(state.seconds)}"]
    if state.best is not None:
        which = ", averaged weights" if state.best["averaged"] else ""
        lines.append(
            f"best model: {path / 'best'} (AP {percent(state.best['AP'])}, epoch {epochs(state.best['epoch'])}{which})"
        )
    files = [name for name in ("log.csv", "curves.png", "final_ema") if (path / name).exists()]
    lines += [
        f"final model: {path / 'final'}",
        f"also written: {', '.join(files)}; checkpoints to resume from: {path / 'last'}",
        *problems(run),
        "next:",
        f"  {command_line('predict', '--checkpoint', path, 'IMAGES')}",
    ]
    if run.data.layout.valid is not None or run.config.val_fraction:
        lines.append(f"  {command_line('evaluate', '--checkpoint', path, '--data', run.config.data)}")
    return "\n".join(lines)


def problems(run: Run) -> list[str]:
    """Describe what was left out, and what failed beside the training."""
    lines = [
        f"left out of {use}: {counted(len(images), 'image')}, named above"
        for use, images in run.left_out.items()
        if images
    ]
    return lines + [f"failed: {failure}" for failure in run.failures]


def out_of_patience(run: Run) -> str:
    """Describe an end before the last epoch."""
    assert run.state.best is not None
    return (
        f"stopping early: {run.config.patience} evaluations without an AP above {percent(run.state.best['AP'])}, of "
        f"epoch {epochs(run.state.best['epoch'])} (--patience)"
    )


def stopping(run: Run) -> str:
    """Answer the first Ctrl-C."""
    return (
        f"stopping after this step, with a checkpoint in {run.folder.path}. To continue later: "
        f"{resume_command(run)}\nCtrl-C again stops at once, without this checkpoint"
    )


def resume_command(run: Run) -> str:
    """Return the command that resumes a run; its other options are in the run's config.json."""
    size = run.ranks.size
    command = command_line("train", "--output", run.folder.path, "--resume")
    if size > 1:
        command = command.replace("python", f"torchrun --nproc-per-node {size}", 1)
    return run.resume_command or command


def stopped(run: Run, signal: str) -> str:
    """Describe a stop on request."""
    where = f"at step {run.state.step}; its checkpoint is {run.folder.path / 'last'}"
    lines = [f"stopped by {signal} {where}", *problems(run), f"resume with: {resume_command(run)}"]
    return "\n".join(lines)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the GPU's or the machine's memory is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def out_of_memory(run: Run, batches: Sequence[Batch]) -> str:
    """Describe the step that was too large, and the options that reduce its memory."""
    config = run.config
    shapes = " and ".join("x".join(map(str, batch.images.shape)) for batch in batches)
    half = max(1, config.batch_size // 2)
    fewer = f"--batch-size {half} --accumulate {config.accumulate * config.batch_size // half}"
    options = [f"{fewer} (same effective batch)"] if config.batch_size > 1 else []
    options += [] if config.model.gradient_checkpointing else ["--model.gradient-checkpointing"]
    options += ["--amp bf16"] if config.amp == "off" else []
    options += ["a smaller --long-side and --short-sides"]
    return (
        f"out of memory in step {run.state.step + 1}: images {shapes}. {memory_advice(options)}. {last_checkpoint(run)}"
    )


def never_finite(run: Run, count: int, last: SkippedStep) -> str:
    """Describe a series of steps with losses or gradients that were not finite."""
    better = {"fp16": "--amp bf16 or off; ", "bf16": "--amp off; ", "off": ""}[run.config.amp]
    return (
        f"{count} steps in a row were not finite, the last one {run.state.step}: {last}. Try {better}a lower --lr, or "
        f"--warmup-steps 1000; check the boxes of these images. {last_checkpoint(run)}. If that checkpoint is already "
        "broken, delete it to resume from the previous one"
    )


def last_checkpoint(run: Run) -> str:
    """Return where the last complete checkpoint is, and the command that resumes from it."""
    checkpoint = run.folder.last_complete()
    if checkpoint is None:
        return "There is no checkpoint yet"
    return f"The last checkpoint is {checkpoint}; resume with: {resume_command(run)}"


def skipped_step(step: int, skipped: SkippedStep, scale: float | None) -> str:
    """Describe a step without an update."""
    scaled = f"; the loss scale is now {scale:g}" if scale is not None else ""
    return f"step {step} skipped: {skipped}{scaled}"


def epochs(done: float) -> str:
    """Return a number of epochs with at most three decimals, and without zeros at the end."""
    return f"{done:.3f}".rstrip("0").rstrip(".")
