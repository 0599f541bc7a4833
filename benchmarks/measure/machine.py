"""Describe the machine of a result: public model names and versions, never a host or user name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dino_kernels
from dino_kernels.ops._core import libraries

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "no CUDA device here (torch.cuda.is_available() is False)"
PEERS = ("transformers", "mmcv", "deformops", "scipy", "lapx", "torch-linear-assignment", "onnxruntime", "openvino")


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if names:
            return names[0].strip()
    if platform.system() == "Darwin":
        return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return platform.processor() or platform.machine()


def git_state() -> tuple[str | None, bool | None]:
    """Return the commit and whether tracked files differ from it, or (None, None) outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
        return git("rev-parse", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return None, None


def describe(device: str) -> dict[str, Any]:
    commit, dirty = git_state()
    gpu = {}
    if device == "cuda":
        properties = torch.cuda.get_device_properties("cuda")
        gpu = {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return gpu | {
        "device": device,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_unit": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "nvcc": ((libraries.build_info() or {}).get("cuda") or {}).get("nvcc"),
        "dino_kernels": dino_kernels.__version__,
        "peers": {name: version for name in PEERS if (version := _version(name))},
        "commit": commit,
        "uncommitted_changes": dirty,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    # In some containers it exists and fails; a result without the driver's version is better than none.
    finished = subprocess.run(query, capture_output=True, text=True, check=False)
    return finished.stdout.splitlines()[0] if finished.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _threads(machine: dict[str, Any]) -> str:
    return f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"


def slug(machine: dict[str, Any]) -> str:
    """Return the folder name of a machine: `nvidia-h100-80gb-hbm3`, `intel-xeon-gold-6248-avx512-2-threads`."""
    name = machine.get("gpu") or f"{machine['cpu']} {machine['vector_unit']} {_threads(machine)}"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((?:r|tm)\)|@.*?hz", "", name.lower())).strip("-")


def caption(machine: dict[str, Any]) -> str:
    """Return one line for tables and plots."""
    hardware = machine.get("gpu") or f"{machine['cpu']}, {machine['vector_unit']}, {_threads(machine)}"
    commit = (machine["commit"] or "no commit")[:9] + (" with changes" if machine["uncommitted_changes"] else "")
    return f"{hardware}; torch {machine['torch']}; commit {commit}; {machine['date']}"
