"""The commands of `python -m dino`."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from dino.commands.exit_codes import USER_ERROR, run
from dino.common.text import suggestion

# Name: module, its function, what it does. Modules are imported on use, so that help does not import torch.
COMMANDS = {
    "demo": ("dino.commands.demo", "main", "Train a small model on digits, from nothing; minutes on a CPU."),
    "data": ("dino.commands.data", "data_command", "Count, check, draw and convert a data set."),
    "train": ("dino.commands.train", "train_command", "Train on your own data; resumes a stopped run."),
    "evaluate": ("dino.commands.evaluate", "evaluate_command", "Score a model: COCO's average precision."),
    "predict": ("dino.commands.predict", "predict_command", "Find objects in images, folders and videos."),
    "visualize": ("dino.commands.visualize", "visualize_command", "Draw how the model works on an image."),
    "export": ("dino.commands.export", "export_command", "Write a model for ONNX Runtime and other engines."),
    "benchmark": ("dino.commands.benchmark", "benchmark_command", "Time a model, as a whole and part by part."),
    "weights": ("dino.commands.weights", "weights_command", "List published checkpoints, or download them."),
    "summary": ("dino.commands.summary", "summary_command", "List a model's parts, parameters and operations."),
}

HELP = f"""DINO, a detector (arXiv 2203.03605): train it, measure it, use it.

usage: python -m dino COMMAND [options]

commands:
{chr(10).join(f"  {name:<10} {what}" for name, (_, _, what) in COMMANDS.items())}

a first session, without data of your own:
  python -m dino demo

with your own data (COCO, YOLO, Pascal VOC, a CSV of boxes, WebDataset shards):
  python -m dino data DATA
  python -m dino train --data DATA --output runs/mine
  python -m dino evaluate --checkpoint runs/mine --data DATA
  python -m dino predict --checkpoint runs/mine photo.jpg album/ --output found
  python -m dino export --checkpoint runs/mine --output model.onnx

what they write:
  runs/mine/best/         the best model, which --checkpoint runs/mine selects
  runs/mine/last/         the newest checkpoint, to resume from
  runs/mine/log.csv       losses and metrics; plotted in curves.png
  runs/mine/evaluation/   the report of evaluate: valid/report.html
  found/pictures/         the images with boxes
  found/predictions.json  the boxes, in COCO's result format

to resume a stopped run:
  python -m dino train --output runs/mine --resume

to list the options of a command: python -m dino COMMAND --help
to see the full traceback of an error, add --traceback
the command `dino` is `python -m dino`; --version prints the version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for a partial failure, 2 for wrong input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a letter of a name shows its number
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else USER_ERROR
    name, *rest = arguments
    if name in ("--version", "-V", "version"):
        from dino_kernels import __version__

        print(f"dino {__version__}")
        return 0
    if name not in COMMANDS:
        hint = suggestion(name, COMMANDS)
        print(f"error: no command {name!r}.{hint} The commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return USER_ERROR
    show_traceback = "--traceback" in rest
    rest = [argument for argument in rest if argument != "--traceback"]
    # Threads that wait without spinning: on a machine with other load spinning takes many times as long, and on an idle
    # one it gains nothing measurable. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    module, function, _ = COMMANDS[name]
    return run(lambda: getattr(importlib.import_module(module), function)(rest), show_traceback=show_traceback)
