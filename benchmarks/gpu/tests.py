"""Run the tests that use a GPU, in a limited time: `python -m benchmarks.gpu.tests --seconds 240 [pytest's options]`.

With pytest-xdist several processes share the GPU, with pytest-timeout a test that hangs is ended; neither is required.
The exit code is pytest's, or 1 if the time was up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch

from benchmarks.measure.machine import NO_GPU, ROOT

ONE_TEST_S = 90  # the first to use a Triton kernel compiles it, beside seven others
SUMMARY_S = 20.0  # to write its summary, after the time is up


def options(workers: int, installed: Callable[[str], bool]) -> list[str]:
    """Return pytest's options: --gpu, and those of the installed plugins."""
    chosen = ["--gpu", "--fuzz", "50", "-q", "--tb=short", "--continue-on-collection-errors"]
    if installed("xdist"):
        # Small portions keep the order; a worker that crashes is replaced, and its test has failed.
        chosen += ["-n", str(workers), "--maxschedchunk", "4", "--max-worker-restart", "50"]
    if installed("pytest_timeout"):
        # No signal interrupts a call that waits for a GPU, so a thread ends the process if another can replace it.
        chosen += ["--timeout", str(ONE_TEST_S), "--timeout-method", "thread" if installed("xdist") else "signal"]
    return chosen


def run(command: Sequence[str], seconds: float) -> int:
    """Run pytest and return its exit code; after `seconds` interrupt it, so that it prints a summary, and return 1."""
    # Background jobs of a shell ignore interrupts, and so would their children.
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SUMMARY_S)
        print(f"the tests were ended after {seconds:.0f} s", flush=True)
        return 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="for all tests (240)")
    parser.add_argument("--workers", type=int, default=8, help="processes (8)")
    parser.add_argument("--without-gpu", action="store_true", help="run without a GPU: collect and skip")
    chosen, others = parser.parse_known_args()
    if not chosen.without_gpu and not torch.cuda.is_available():
        raise SystemExit(f"{NO_GPU}; --without-gpu collects the tests and skips them")
    ours = options(chosen.workers, lambda module: find_spec(module) is not None)
    return run([sys.executable, "-m", "pytest", *ours, *others], chosen.seconds)


if __name__ == "__main__":
    sys.exit(main())
