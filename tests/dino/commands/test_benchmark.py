"""`python -m dino benchmark`: each part has its own time, compiled models are one part, wrong options are named."""

from __future__ import annotations

import re
import time
from unittest.mock import Mock

import pytest
import torch

from dino import commands
from dino.checkpoint import save_model
from dino.commands.benchmark import Timing, measure, table
from dino.model.config import PRESETS
from tests.dino.tools_toys import CATEGORIES, TINY, noise_picture, tiny_detector, tiny_model

PARTS = ["preprocessing", "backbone", "neck", "encoder", "query selection", "decoder", "heads", "postprocessing"]


def benchmark(*arguments):
    return commands.main(["benchmark", "--device", "cpu", "--seconds", "0", *map(str, arguments)])


@pytest.mark.parametrize(
    ("module", "slow"),
    [
        ("backbone", "backbone"),
        ("neck.projections.1", "neck"),
        ("encoder.layers.0.ffn", "encoder"),
        ("query_selection", "query selection"),
        ("decoder.layers.1", "decoder"),
    ],
)
def test_a_module_that_takes_longer_shows_in_its_part_alone(monkeypatch, module, slow):
    now = [0.0]

    def advance(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    detector = tiny_detector()
    detector.model.get_submodule(module).register_forward_pre_hook(lambda *_: advance(2.0))
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in detector.model.modules())
    timing = Timing(2, compiled=False)
    measure(detector, noise_picture(), timing, 7.0)
    assert timing.first_s == 2.0 and len(timing.calls) == 4  # to the end of the 7 seconds
    assert {part: timing.part_s(part) for part in PARTS} == {part: 2.0 * (part == slow) for part in PARTS}
    assert timing.total_s() == 2.0
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in detector.model.modules())


def test_the_table_has_a_column_for_each_batch_size(tmp_path, capsys):
    save_model(tiny_model(), tmp_path / "run" / "best", CATEGORIES, {"image_size": {"short_side": 64, "long_side": 96}})
    assert benchmark("--checkpoint", tmp_path / "run", "--batch-sizes", 1, 3, "--image-size", 60, 80) == 0
    out, err = capsys.readouterr()
    assert "images of 60x80, resized to 64x85; float32, CPU" in out and "eager, batch 3" in err
    lines = out.splitlines()
    assert re.split(" {2,}", lines[3]) == ["ms per batch", "eager, batch 1", "eager, batch 3"]
    rows = {cells[0]: cells[1:] for cells in (re.split(" {2,}", line) for line in lines[4:])}
    assert [name for name in rows if not name.startswith("-")] == [*PARTS, "total", "images/s", "first call, s"]
    assert all(len(cells) == 2 for name, cells in rows.items() if not name.startswith("-"))
    assert len({len(line) for line in lines[3:]}) == 1


class Compiled(torch.nn.Module):
    """What `torch.compile` returns: another module that runs the model."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments):
        return self.model(*arguments)


def test_a_compiled_model_is_one_part(monkeypatch, capsys):
    compile_ = Mock(side_effect=Compiled)  # tests/dino/inference/test_precision.py compiles
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setitem(PRESETS, "dino_toy", TINY)
    arguments = ("--short-side", 64, "--long-side", 96, "--batch-sizes", 1, "--image-size", 60, 80, "--seconds", 0.1)
    assert benchmark("--preset", "dino_toy", "--compile", *arguments) == 0
    out = capsys.readouterr().out
    assert "dino_toy, random weights" in out and "eager, batch 1  compiled, batch 1" in out
    assert len(re.findall(r"\d", re.search(r"^model .*", out, re.MULTILINE).group()[:30])) == 0  # pyright: ignore
    compile_.assert_called_once()


def test_throughput_counts_the_images_of_a_batch():
    timings = [Timing(1, False, 1.0, [{"model": 0.5}]), Timing(8, True, 90.0, [{"model": 1.0, "heads": 1.0}])]
    rows = table(timings).splitlines()
    assert rows[-2].split() == ["images/s", "2.00", "4.00"]
    assert rows[-1].split() == ["first", "call,", "s", "1.0", "90.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no model. Pass --checkpoint PATH, or --preset NAME"),
        (("--preset", "dino_tiny", "--batch-sizes", "0"), "--batch-sizes must be at least 1"),
        (("--preset", "dino_tiny", "--image-size", "0", "9"), "--image-size must be at least 1"),
        (("--preset", "dino_tin"), "perhaps you meant 'dino_tiny'"),
        (("--checkpoint", "missing"), "missing"),
        (("--preset", "dino_tiny", "--short-side", "0"), "short_side must be at least 1"),
    ],
)
def test_wrong_options_end_with_one_line_and_code_2(capsys, arguments, message):
    assert benchmark(*arguments) == 2
    assert message in capsys.readouterr().err
