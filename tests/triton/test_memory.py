"""Conflicts between threads and programs of Triton's kernels over the same memory, found in its interpreter."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from dino_kernels.ops._core import triton_support
from dino_kernels.ops._matching import cost_arguments
from dino_kernels.testing import Case, run
from tests.selection import INTERPRETED
from tests.triton import interpreter
from tests.triton.examples import INF, check_assignment, drawn, predictions, spoil, truth

pytest.importorskip("triton", reason=triton_support.MISSING)

ATTENTION = Case("attention", 2, 9, 2, 6, ((3, 4), (2, 2)), (2, 1), reference_coordinates=4, mask=True)


class Accesses:
    """The accesses of programs to memory; `conflicts` has those that are undefined on a GPU.

    Two accesses to the same element, of which one writes, need a barrier between them, and may not come from two
    programs. The threads that execute one access do so in any order, so it may not write an element twice.
    """

    def __init__(self, builder: Any, monkeypatch: pytest.MonkeyPatch, barriers: bool = True) -> None:
        self.conflicts: list[str] = []
        self.barriers = 0
        self.program = 0
        self.readers: dict[int, set[int]] = {}
        self.writers: dict[int, set[int]] = {}
        self.changers: dict[int, set[int]] = {}  # by atomic operations, of which any number may come together
        self.forget()

        def watch(name: str, before: Callable[..., None]) -> None:
            original = getattr(builder, name)

            def watched(*args: Any) -> Any:
                before(*args)
                return original(*args)

            monkeypatch.setattr(builder, name, watched)

        watch("create_masked_load", lambda pointers, mask, *_: self.read(pointers, mask))
        watch("create_masked_store", lambda pointers, value, mask, *_: self.write(pointers, mask))
        watch("create_atomic_rmw", lambda op, pointers, value, mask, *_: self.change(pointers, mask))
        watch("create_barrier", lambda: self.barrier() if barriers else None)
        watch("set_grid_dim", lambda *_: self.start_launch())
        watch("set_grid_idx", lambda *_: self.start_program())

    def forget(self) -> None:
        self.read_since: set[int] = set()
        self.written_since: set[int] = set()
        self.changed_since: set[int] = set()

    def barrier(self) -> None:
        self.barriers += 1
        self.forget()

    def start_launch(self) -> None:
        self.readers, self.writers, self.changers = {}, {}, {}

    def start_program(self) -> None:
        self.program += 1
        self.forget()

    def _addresses(self, pointers: Any, mask: Any) -> list[int]:
        return pointers.data[mask.data.astype(bool)].tolist()

    def _note(self, addresses: list[int], wrong: set[int], by_others: dict[int, set[int]], what: str) -> None:
        for address in addresses:
            if address in wrong:
                self.conflicts.append(f"{what} without a barrier")
            if by_others.get(address, {self.program}) != {self.program}:
                self.conflicts.append(f"{what} by two programs")

    def read(self, pointers: Any, mask: Any) -> None:
        addresses = self._addresses(pointers, mask)
        self._note(addresses, self.written_since, self.writers, "read after write")
        self._note(addresses, self.changed_since, self.changers, "read after write")
        self.read_since.update(addresses)
        for address in addresses:
            self.readers.setdefault(address, set()).add(self.program)

    def write(self, pointers: Any, mask: Any) -> None:
        addresses = self._addresses(pointers, mask)
        if len(set(addresses)) < len(addresses):
            self.conflicts.append("one access writes an element twice")
        self._note(addresses, self.read_since, self.readers, "write after read")
        self._note(addresses, self.written_since, self.writers, "write after write")
        self._note(addresses, self.changed_since, self.changers, "write after write")
        self.written_since.update(addresses)
        for address in addresses:
            self.writers.setdefault(address, set()).add(self.program)

    def change(self, pointers: Any, mask: Any) -> None:
        addresses = self._addresses(pointers, mask)
        self._note(addresses, self.read_since, self.readers, "write after read")
        self._note(addresses, self.written_since, self.writers, "write after write")
        self.changed_since.update(addresses)
        for address in addresses:
            self.changers.setdefault(address, set()).add(self.program)


@pytest.fixture
def interpreted_with_small_tiles(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    modules = interpreter.modules()
    for name, value in interpreter.SMALL_TILES.items():
        monkeypatch.setattr(modules["linear_sum_assignment"], name, value)
    return modules


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Accesses]:
    from triton.runtime.interpreter import interpreter_builder

    return lambda **options: Accesses(interpreter_builder, monkeypatch, **options)


def run_all_paths(modules: dict[str, ModuleType], ties: str) -> None:
    logits, boxes = predictions(torch.float32, 2.0, (1, 70), (1, 6))
    targets = truth((9, 0, 2), capacity=14)
    spoil(logits, boxes, targets)
    arguments = cost_arguments("matching_cost", logits, boxes, targets, "dino", None, {})
    modules["matching_cost"].forward(arguments)
    assignment = modules["linear_sum_assignment"]
    for kind in ("collapsed", "ties", "infinities", "forbidden_lines"):
        check_assignment(assignment, drawn(kind, 6, 1, 6, 9), ties=ties)
        check_assignment(assignment, drawn(kind, 6, 1, 6, 9).transpose(1, 2), ties=ties)
    check_assignment(assignment, drawn("collapsed", 6, 1, 11, 12), torch.tensor([0, 0, 2, 11]), ties=ties)
    check_assignment(assignment, drawn("one_cheap_column", 6, 1, 8, 12), ties=ties)
    check_assignment(assignment, torch.full((1, 5, 6), INF), ties=ties)


@pytest.mark.parametrize("ties", ["lowest", "scipy"])
def test_threads_and_programs_have_the_barriers_that_they_need(ties, interpreted_with_small_tiles, watched):
    accesses = watched()
    run_all_paths(interpreted_with_small_tiles, ties)
    assert accesses.barriers > 0
    assert not accesses.conflicts, sorted(set(accesses.conflicts))


@pytest.mark.parametrize("ties", ["lowest", "scipy"])
def test_a_missing_barrier_would_be_seen(ties, interpreted_with_small_tiles, watched):
    accesses = watched(barriers=False)
    check_assignment(interpreted_with_small_tiles["linear_sum_assignment"], drawn("ties", 6, 1, 6, 9), ties=ties)
    assert {"read after write without a barrier", "write after read without a barrier"} <= set(accesses.conflicts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("op", ["ms_deform_attn", "fused_ms_deform_attn"])
def test_gradients_of_attention_have_the_barriers_that_they_need(make_inputs, watched, op, dtype):
    inputs = make_inputs(op, ATTENTION, dtype, INTERPRETED)
    accesses = watched()
    run(op, inputs, INTERPRETED)
    assert (accesses.barriers > 0) == (op == "fused_ms_deform_attn")
    assert not accesses.conflicts, sorted(set(accesses.conflicts))


def test_a_missing_barrier_before_the_softmax_gradient_would_be_seen(make_inputs, watched):
    inputs = make_inputs("fused_ms_deform_attn", ATTENTION, torch.bfloat16, INTERPRETED)
    accesses = watched(barriers=False)
    run("fused_ms_deform_attn", inputs, INTERPRETED)
    assert set(accesses.conflicts) == {"read after write without a barrier"}
