"""What the commands have in common: parsing of options, and errors that are the user's rather than ours."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from dino.common.text import memory_advice

Options = TypeVar("Options")

TRACEBACK_VARIABLE = "DINO_TRACEBACK"
INTERRUPTED = 130
USER_ERROR = 2
FAILED = 1
MEMORY_OPTIONS = ("--amp bf16", "a smaller --short-side and --long-side", "--batch-size 1", "--device cpu")


def parse(options: type[Options], command: str, argv: Sequence[str]) -> Options:
    """Options of a command from its arguments; the fields' docstrings are the help.

    Exits with 0 after `--help`, and with 2 and a suggestion where an argument is not understood.
    """
    import tyro

    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    paragraphs = (inspect.getdoc(options) or "").split("\n\n")
    # tyro joins the lines of a paragraph, and the terminal would break them within words; lines that begin with a space
    # stay as they are.
    wrapper = textwrap.TextWrapper(width, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
    return tyro.cli(
        options,
        args=list(argv),
        prog=f"python -m dino {command}",
        description="\n".join(wrapper.fill(text) for text in paragraphs),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def run(command: Callable[[], Any], *, show_traceback: bool = False) -> int:
    """Run a command to its exit code.

    An error of the input is one line on stderr and code 2; a bug keeps its traceback; Ctrl-C is code 130.

    Args:
        command: returns None for success, or an exit code.
        show_traceback: of every error.
    """
    show_traceback = show_traceback or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")
    try:
        return command() or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has seen enough (`| head`). Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            print(f"error: out of GPU memory: {error}. {memory_advice(MEMORY_OPTIONS)}", file=sys.stderr)
            return FAILED
        if not is_users(error):
            raise
        if show_traceback:
            traceback.print_exc()
        else:
            print(f"error: {error}", file=sys.stderr)
            print(f"({type(error).__name__}; --traceback shows where it came from)", file=sys.stderr)
        return USER_ERROR


def is_users(error: BaseException) -> bool:
    """Whether an error says what is wrong with the input: it names a file, or this package raised it on purpose."""
    if _is_ours(type(error).__module__):
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return isinstance(error, ValueError | OSError | ImportError) and _raised_here(error.__traceback__)


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether the frame that raised is in this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _is_ours(trace.tb_frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("dino", "dino_kernels")
