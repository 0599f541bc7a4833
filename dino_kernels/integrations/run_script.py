"""Run a script as `python SCRIPT ARGUMENTS` does: the same `__main__`, arguments, path, exit code and traceback."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

from dino_kernels.integrations import checkout_modules

USAGE = "usage: python -m dino_kernels.integrations.original SCRIPT [ARGUMENTS ...]"


def run_script(arguments: list[str]) -> None:
    """Run a script in this process. Processes of `multiprocessing` that it starts find `checkout_modules`, too.

    Args:
        arguments: its path and its own arguments.

    Raises:
        SystemExit: the script exits; with code 2, it cannot be read.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nRun a checkout's script, unmodified, on the kernels of dino_kernels.")
        raise SystemExit(0 if arguments else 2)
    path = Path(arguments[0]).absolute()
    try:
        source = path.read_bytes()
    except OSError as error:
        print(f"{USAGE}\ncan't open file {str(path)!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.argv[:] = arguments
    if not sys.flags.safe_path:
        sys.path[0] = str(path.resolve().parent)
    sys.path.append(checkout_modules.__path__[0])
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=str(path), __loader__=SourceFileLoader("__main__", str(path)), __cached__=None, __annotations__={}
    )
    sys.modules["__main__"] = main
    report = sys.excepthook

    def report_from_script(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        while trace is not None and trace.tb_frame.f_globals is not main.__dict__:
            trace = trace.tb_next
        report(kind, error.with_traceback(trace), trace)

    sys.excepthook = report_from_script
    exec(compile(source, str(path), "exec", dont_inherit=True), main.__dict__)
