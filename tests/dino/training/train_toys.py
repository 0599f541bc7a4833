"""A data set of coloured rectangles, and a model with training steps of milliseconds."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from dino.model.config import model_config
from dino.training.config import TrainConfig

NAMES = {3: "red", 7: "green"}
TINY = model_config(
    "dino_tiny",
    hidden_dim=32,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_queries=10,
    ffn_dim=32,
    num_denoising=5,
)


def write_rectangles(folder: Path, *, train: int = 8, valid: int = 3, size: int = 64) -> Path:
    """Write a data set with the category ids 3 and 7; every fourth image has no box."""
    for split, count in (("train", train), ("valid", valid)):
        rng = random.Random(split)
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            image = Image.new("RGB", (size, size), "white")
            for _ in range(0 if i % 4 == 3 else 1 + i % 3):
                category = rng.choice(list(NAMES))
                x, y, w, h = (rng.randint(4, 24) for _ in range(4))
                ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=NAMES[category])
                box = {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": category, "bbox": [x, y, w, h]}
                annotations.append({**box, "area": w * h, "iscrowd": 0})
            image.save(folder / split / f"{i}.png")
            images.append({"id": 100 + i, "file_name": f"{i}.png", "width": size, "height": size})
        categories = [{"id": i, "name": name} for i, name in NAMES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def toy_config(data: Path, output: Path, **changes: Any) -> TrainConfig:
    """Return the options of a run of the toy model: four steps an epoch, no evaluation."""
    config = TrainConfig(
        data=data,
        output=output,
        model=TINY,
        epochs=2,
        lr=1e-3,
        lr_drop_epochs=(3,),
        device="cpu",
        workers=0,
        short_sides=(48, 64),
        long_side=96,
        crop=False,
        evaluate_every=0,
        checkpoint_minutes=0,
        log_every=1,
        tensorboard=False,
    )
    return dataclasses.replace(config, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a model folder."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    """Assert that two model folders are bitwise equal."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, for example {different[:3]}"


def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one thread and draw no curves, which would take longer than these runs."""
    # importlib finds no module whose entry is None.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    torch.set_num_threads(1)


def child_process(function: Any, *arguments: Any, **environment: str) -> BaseProcess:
    """Start a process that runs `function`, forked from one with all imports done."""
    context = multiprocessing.get_context("forkserver")
    # torch.optim imports torch._dynamo late, in a second.
    context.set_forkserver_preload(["dino.training.train", "dino.commands.train", "torch._dynamo", "train_toys"])
    process = context.Process(target=_run_child, args=(function, arguments, environment))
    process.start()
    return process


def _run_child(function: Any, arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    # As in a terminal: under nohup, or started with &, these signals are ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Loader processes must be children of this one: only then do they end when it is killed.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    torch.set_num_threads(1)
    quick_runs(pytest.MonkeyPatch())
    sys.exit(function(*arguments))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return when a condition holds; it must within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {seconds} seconds"
        time.sleep(0.01)


def run_ranks(count: int, function: Any, *arguments: Any) -> None:
    """Run `function` in `count` processes with the environment of torchrun, and wait for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    processes = [
        child_process(function, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(count)
    ]
    for process in processes:
        process.join(120)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0] * count
