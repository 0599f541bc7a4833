"""When Triton's kernels of deformable attention are measured, with a stand-in GPU that has only times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dino_kernels.ops._core import triton_support
from dino_kernels.ops.ms_deform_attn import triton as backend
from dino_kernels.testing import Case, run, sample_inputs
from tests.second_copy import second_copy

pytest.importorskip("triton", reason=triton_support.MISSING)

Launches = list[tuple[str, int]]  # (kernel, queries a program)
MEASURED = [("forward", 32)] * 3 + [("forward", 64)] * 4 + [("backward", 32)] * 3 + [("backward", 64)] * 4
DEFAULT = [("forward", 32), ("backward", 32)]
FASTEST = [("forward", 64), ("backward", 64)]


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[[str], Callable[[], Launches]]:
    """Return the launches of two calls of a kind in a named process; 64 queries a program take half as long as 32."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    from dino_kernels.ops.ms_deform_attn import triton_tuned

    launched: Launches = []

    def record(name: str) -> Callable[..., None]:
        def run_kernel(*args: Any, **options: Any) -> None:
            launched.append((name, options["BLOCK_Q"]))
            if name == "backward":
                args[9].add_(1)  # to the sums of grad_value

        return run_kernel

    def measure(call: Callable[[], None], quantiles: Sequence[float]) -> list[float]:
        for _ in range(3):
            call()
        return [32.0 / launched[-1][1]] * len(quantiles)

    target = GPUTarget("cuda", 90, 32)
    active = SimpleNamespace(get_current_target=lambda: target, get_benchmarker=lambda: measure)
    monkeypatch.setattr(driver, "_active", active)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv(triton_tuned.SWITCH, raising=False)
    monkeypatch.setattr(triton_tuned.ms_deform_attn_forward, "run", record("forward"))
    monkeypatch.setattr(triton_tuned.ms_deform_attn_backward, "run", record("backward"))
    monkeypatch.setattr(triton_support, "DEVICES", ("cpu",))
    monkeypatch.setattr(backend, "FEW_ITEMS", 1)

    def process(name: str) -> Callable[[], Launches]:
        kernels = second_copy("ms_deform_attn", "triton_tuned", name)

        def calls() -> Launches:
            monkeypatch.setattr(backend, "kernels", lambda: kernels)
            launched.clear()
            for queries in (9, 20):  # sizes are no other kind of call
                inputs = sample_inputs("ms_deform_attn", Case("some", 1, queries, 2, 8, ((3, 4),), (2,)), torch.float32)
                assert (run("ms_deform_attn", inputs, "triton").grads["value"] == 1).all(), "sums start at zero"
            return launched.copy()

        return calls

    return process


def test_a_kind_of_call_is_tuned_once_and_not_again_in_another_process(new_process):
    assert new_process("first")() == MEASURED + FASTEST
    assert new_process("second")() == FASTEST * 2


def test_nothing_is_measured_or_stored_where_tuning_is_switched_off(new_process, monkeypatch):
    monkeypatch.setenv("DINO_KERNELS_TRITON_TUNE", "0")
    assert new_process("first")() == DEFAULT * 2
    monkeypatch.setenv("DINO_KERNELS_TRITON_TUNE", "1")
    assert new_process("second")() == MEASURED + FASTEST


def test_a_capture_measures_nothing_and_makes_no_choice(new_process, monkeypatch):
    """A measurement waits for the GPU, which ends a capture with an error."""
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    calls = new_process("first")
    assert calls() == DEFAULT * 2
    capturing = False
    assert calls() == MEASURED + FASTEST
    capturing = True
    assert calls() == FASTEST * 2, "the stored choice is used"
    assert new_process("second")() == DEFAULT * 2, "a choice that another process stored is not read"
