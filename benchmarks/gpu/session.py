"""Define the command line that the GPU suite and the smoke run share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.isolated import Part
from benchmarks.measure import machine
from benchmarks.measure.machine import NO_GPU


def parser(module: str, description: str | None, results: Path) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--results", type=Path, default=results, help=f"the JSON ({results})")
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    made.add_argument("--only", metavar="TEXT", default="", help="parts whose name contains this")
    made.add_argument("--commit", help="the commit to record if there is no git")
    return made


def start(options: argparse.Namespace, dry_run: str, make: Callable[[], Sequence[Part]]) -> list[Part]:
    """Return the parts that `options` select.

    Raises:
        SystemExit: there is no GPU, or --only selects nothing.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{NO_GPU}; {dry_run} is a dry run")
    everything = make()
    parts = [part for part in everything if options.only in part.name]
    if not parts:
        names = "\n  ".join(part.name for part in everything)
        raise SystemExit(f"--only {options.only!r} matches no part. Use a part of one of these names:\n  {names}")
    if options.device == "cpu":
        # Nobody reads the times, and threads that wait for each other take long on a busy machine.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return parts


def facts(options: argparse.Namespace) -> dict[str, Any]:
    described = machine.describe(options.device)
    return described | {"commit": described["commit"] or options.commit or None}
