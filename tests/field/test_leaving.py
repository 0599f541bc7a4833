"""Leaving is safe: every command ends soon after an error or a signal, with its code and message, and without children.

Commands run in processes forked from one with all imports done. Loader processes are their children, so that one that
stays is seen.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dino.checkpoint import load_model, save_model
from dino.training.train import train
from tests.dino.training.train_toys import child_process, toy_config, wait_for, write_rectangles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are listed in /proc")
# Goal: 2 s. The machine may be busy.
SECONDS = 10
SIZES = ("--short-side", "64", "--long-side", "96")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("data") / "rectangles")


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    train(toy_config(data, output, max_steps=1), quiet=True)
    return output


def slowly(arguments: list[str], output: Path, seconds: float) -> int:
    """Run a command whose images take time to open, so that it can be met at work."""
    from dino.commands import main
    from dino.data import dataset, images
    from dino.inference import sources

    def open_slowly(*given: Any, **options: Any) -> Image.Image:
        with output.with_name("opened").open("a") as opened:
            opened.write("x")
        time.sleep(seconds)
        return open_image(*given, **options)

    open_image = images.open_image
    dataset.open_image = sources.open_image = open_slowly
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        return main(arguments)


def by_torchrun(arguments: list[str], output: Path, seconds: float) -> int:
    """Run a command in two processes, as torchrun does; they are forked, which saves their imports."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="leaving",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    try:
        elastic_launch(config, one_rank)(arguments, output, seconds)
    except (SignalException, ChildFailedError):
        return 1
    return 0


def one_rank(arguments: list[str], output: Path, seconds: float) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # a process that is not forked has no handlers of torchrun's
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(slowly(arguments, output, seconds))


def children(pid: int) -> set[int]:
    """Processes below a process."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | children(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Started:
    """A command at work."""

    def __init__(
        self, arguments: list[str], folder: Path, seconds: float = 0.3, runner: Any = slowly, least: int = 0
    ) -> None:
        self.output = folder / "output.txt"
        self.process: BaseProcess = child_process(runner, arguments, self.output, seconds)
        opened = folder / "opened"
        pid = self.process.pid or 0
        at_work = lambda: opened.exists() and opened.stat().st_size >= 2 and len(children(pid)) >= least  # noqa: E731
        wait_for(lambda: at_work() or self.process.exitcode is not None)
        self.children = children(pid)

    def leave(self, number: int | None = None, seconds: float = SECONDS) -> tuple[int | None, str]:
        """Send a signal, or none, and wait for the end; return the exit code and the output.

        Args:
            number: the signal.
            seconds: how long it may take after a signal.
        """
        if number is not None and self.process.pid is not None:
            os.kill(self.process.pid, number)
        self.process.join(60 if number is None else seconds)
        assert self.process.exitcode is not None, f"it does not end: {self.output.read_text()}"
        wait_for(lambda: not any(map(alive, self.children)), seconds)
        return self.process.exitcode, self.output.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    every: list[Started] = []

    def start(*arguments: object, **options: Any) -> Started:
        every.append(Started([str(argument) for argument in arguments], tmp_path, **options))
        return every[-1]

    yield start
    for started in every:
        for pid in {started.process.pid or 0, *started.children} - {0}:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def commands(data: Path, checkpoint: Path, workers: int, output: Path) -> dict[str, tuple[object, ...]]:
    loader = ("--workers", workers)
    tiny = "--preset dino_tiny --model.hidden-dim 32 --model.num-queries 10 --short-sides 64 --long-side 96"
    tiny += " --no-tensorboard --batch-size 1 --epochs 9 --evaluate-every 0"
    return {
        "train": ("train", "--data", data, "--output", output / "run", *tiny.split(), *loader),
        "evaluate": ("evaluate", "--checkpoint", checkpoint, "--data", data, "--split", "train", *loader),
        "predict": ("predict", "--checkpoint", checkpoint, data / "train", "--output", output / "found"),
    }  # fmt: skip


SIGNALS = {"Ctrl-C": signal.SIGINT, "terminate": signal.SIGTERM, "hang up": signal.SIGHUP, "kill": signal.SIGKILL}


@pytest.mark.parametrize("door", SIGNALS)
@pytest.mark.parametrize(
    ("name", "workers"), [("train", 0), ("train", 2), ("evaluate", 0), ("evaluate", 2), ("predict", 0)]
)
def test_every_command_leaves_after_every_signal(start, data, checkpoint, tmp_path, name, door, workers):
    started = start(*commands(data, checkpoint, workers, tmp_path)[name], least=workers)
    code, text = started.leave(SIGNALS[door])
    if door == "kill" or (name != "train" and door != "Ctrl-C"):
        assert code == -SIGNALS[door]
    else:
        assert code == 128 + SIGNALS[door], text
        assert "Traceback" not in text and ("interrupted" in text or "resume with: " in text)
    if name == "train" and door != "kill":
        answer, end = text.index("stopping after this step"), text.index("stopped by SIG")
        assert answer < end and "--resume" in text[answer:end]
        assert (tmp_path / "run/last/model.safetensors").exists()


def test_a_second_ctrl_c_leaves_at_once(start, data, checkpoint, tmp_path):
    started = start(*commands(data, checkpoint, 2, tmp_path)["train"], seconds=3.0)
    os.kill(started.process.pid, signal.SIGINT)
    wait_for(lambda: "stopping after" in started.output.read_text(), 2)
    code, text = started.leave(signal.SIGINT)
    assert code == 130 and text.rstrip().endswith("interrupted")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_an_evaluation_in_one_line(start, checkpoint, tmp_path, workers):
    data = write_rectangles(tmp_path / "broken")
    broken = data / "valid/1.png"
    broken.write_bytes(broken.read_bytes()[:80])
    code, text = start("evaluate", "--checkpoint", checkpoint, "--data", data, "--workers", workers).leave()
    assert code == 2 and "Traceback" not in text and "Caught" not in text
    assert sum("1.png" in line for line in text.splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_diverged_run_ends_in_words(data, tmp_path, start, workers):
    arguments = commands(data, tmp_path, workers, tmp_path)["train"]
    code, text = start(*arguments, "--lr", 1e6, "--clip", "inf", "--epochs", 50, seconds=0).leave()
    assert code == 2 and "Traceback" not in text
    assert "not finite" in text and "a lower --lr" in text


def test_a_model_that_is_not_finite_is_an_error_in_words(start, data, checkpoint, tmp_path):
    model, categories = load_model(checkpoint)
    model.get_parameter("decoder.class_head.weight").data[0, 0] = torch.nan
    save_model(model, tmp_path / "model", categories)
    for arguments in (("evaluate", "--data", data), ("predict", data / "valid", "--threshold", 0)):
        code, text = start(*arguments, "--checkpoint", tmp_path / "model", *SIZES).leave()
        assert code == 2 and "class_head" in text and "Traceback" not in text


# Two processes of torchrun


@pytest.mark.parametrize(
    ("door", "workers"), [("Ctrl-C", 0), ("terminate", 2), ("kill", 2), ("kill a rank", 0), ("kill a rank", 2)]
)
def test_the_processes_of_torchrun_leave_together(start, data, checkpoint, tmp_path, door, workers):
    started = start(
        *commands(data, checkpoint, workers, tmp_path)["train"], runner=by_torchrun, least=2 * (1 + workers)
    )
    if door == "kill a rank":
        os.kill(min(started.children), signal.SIGKILL)
    code, text = started.leave(SIGNALS.get(door), seconds=25)  # the launcher itself takes some, and kills after 30
    assert code == (-signal.SIGKILL if door == "kill" else 1)
    if door == "kill a rank":
        assert "error: lost another process of the run" in text and "--resume" in text and "[rank1]" not in text
    else:
        assert text.count("stopped by SIG") == 1 and "resume with: torchrun --nproc-per-node 2" in text
        assert (tmp_path / "run/last/model.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_one_process_of_torchrun_ends_both(start, checkpoint, tmp_path, workers):
    data = write_rectangles(tmp_path / "broken", valid=8)
    (data / "valid/7.png").write_bytes(b"no picture")
    arguments = ("--checkpoint", checkpoint, "--data", data, "--workers", workers)
    code, text = start("evaluate", *arguments, runner=by_torchrun).leave()
    assert code == 1 and sum("7.png" in line for line in text.splitlines()) == 1
    assert "Caught" not in text and "Traceback" not in text
