"""`python -m dino`: the commands of the detector."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from dino.commands.exit_codes import USER_ERROR, run

# name: module, function of it that takes the arguments, what it does. Modules are imported when they are needed.
COMMANDS = {
    "demo": ("dino.commands.demo", "main", "Train a small model on digits, from nothing; minutes on a CPU."),
    "train": ("dino.commands.train", "train_command", "Train on data in COCO format; resumes where it was stopped."),
    "evaluate": ("dino.commands.evaluate", "evaluate_command", "Score a model: COCO's average precision."),
    "predict": ("dino.commands.predict", "predict_command", "Find objects in pictures, folders of them, or a glob."),
    "visualize": ("dino.commands.visualize", "visualize_command", "Draw how the model works on one picture."),
    "summary": ("dino.commands.summary", "summary_command", "List a model's parts, parameters and operations."),
}

HELP = f"""DINO, a detector (arXiv 2203.03605): train it, measure it, use it.

usage: python -m dino COMMAND [options]

commands:
{chr(10).join(f"  {name:<10} {what}" for name, (_, _, what) in COMMANDS.items())}

a first session that needs nothing but this package:
  python -m dino demo

with your own pictures, in DATA/train/ and DATA/valid/, each folder with its
boxes in _annotations.coco.json (COCO's own layout works too):
  python -m dino train --data DATA --output runs/mine
  python -m dino evaluate --checkpoint runs/mine --data DATA
  python -m dino predict --checkpoint runs/mine photo.jpg album/ --output found

where things go:
  runs/mine/best/       the best model; --checkpoint runs/mine means this one
  runs/mine/last/       the newest checkpoint, to go on from
  runs/mine/log.csv     losses and scores; curves.png has them as a picture
  found/pictures/       the pictures with boxes
  found/predictions.json  the boxes, in COCO's result format

a run that was stopped goes on where it was:
  python -m dino train --output runs/mine --resume

options of a command:   python -m dino COMMAND --help
where an error is from: add --traceback to any command
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for a partial failure, 2 for wrong input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else USER_ERROR
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Perhaps you meant {close[0]!r}." if close else ""
        print(f"error: no command {name!r}.{hint} The commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return USER_ERROR
    show_traceback = "--traceback" in rest
    rest = [argument for argument in rest if argument != "--traceback"]
    module, function, _ = COMMANDS[name]
    return run(lambda: getattr(importlib.import_module(module), function)(rest), show_traceback=show_traceback)


if __name__ == "__main__":
    sys.exit(main())
