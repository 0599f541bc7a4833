"""Turn the end of a command, or its error, into an exit code. Imports nothing that takes time."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from dino.common.text import memory_advice

TRACEBACK_VARIABLE = "DINO_TRACEBACK"
INTERRUPTED = 130
USER_ERROR = 2
FAILED = 1
MEMORY_OPTIONS = ("--dtype bfloat16", "a smaller --short-side and --long-side", "--batch-size 1", "--device cpu")


def run(command: Callable[[], Any], *, show_traceback: bool = False) -> int:
    """Run a command and return its exit code.

    An input error is one line on stderr and code 2, a bug keeps its traceback, Ctrl-C is code 130.

    Args:
        command: returns None for success, or an exit code.
        show_traceback: show the traceback of every error.
    """
    show_traceback = show_traceback or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")
    try:
        return command() or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed the pipe (`| head`). Python would raise again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            print(f"error: out of GPU memory: {error}. {memory_advice(MEMORY_OPTIONS)}", file=sys.stderr)
            return FAILED
        if not is_user_error(error):
            raise
        if show_traceback:
            traceback.print_exc()
        else:
            print(f"error: {error}", file=sys.stderr)
            print(f"({type(error).__name__}; --traceback shows the full traceback)", file=sys.stderr)
        return USER_ERROR


def is_user_error(error: BaseException) -> bool:
    """Return whether an error describes wrong input: it names a file, or this package raised it on purpose."""
    if _is_ours(type(error).__module__):
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return isinstance(error, ValueError | OSError | ImportError) and _raised_here(error.__traceback__)


def _raised_here(trace: TracebackType | None) -> bool:
    """Return whether the frame that raised is in this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _is_ours(trace.tb_frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("dino", "dino_kernels")
