"""Calls like an earlier one skip checks and dispatch, with the same results and errors."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dino_kernels
from benchmarks.attention import host
from dino_kernels import UnsupportedError
from dino_kernels.ops._core import eager
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.testing import Case, run, sample_inputs
from tests.ops.contract.test_arguments import CASE, TABLE, label
from tests.ops.eager_calls import Seen, assert_equal, by_registered_ops, forget_calls, kept, registered

UNEVEN = Case("uneven", 2, 7, 4, 8, CASE.shapes, (1, 5))


@pytest.fixture(autouse=True)
def no_calls_seen() -> None:
    forget_calls()


@pytest.fixture
def call(op) -> Callable[..., Tensor]:
    return getattr(dino_kernels, op)


@pytest.fixture
def inputs(op) -> dict[str, Any]:
    return sample_inputs(op, CASE, torch.float32)


neg_view: Any = vars(torch)["_neg_view"]
# Changes to the arguments of the first call.
CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "nothing": lambda x: x,
    "values": lambda x: {**x, "value": (x["value"] * 2).detach().requires_grad_()},
    "dtype of value": lambda x: {**x, "value": x["value"].detach().bfloat16().requires_grad_()},
    "float64": lambda x: {**x, "value": x["value"].detach().double().requires_grad_()},
    "strides of value": lambda x: {
        **x, "value": x["value"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    },
    "images": lambda x: {
        name: y[:1].detach().requires_grad_(y.requires_grad) if isinstance(y, Tensor) and y.shape[0] == 2 else y
        for name, y in x.items() if name not in ("spatial_shapes", "level_start_index")
    } | {name: x[name] for name in ("spatial_shapes", "level_start_index")},
    "int32 tables": lambda x: {**x, "spatial_shapes": x["spatial_shapes"].int()},
    "other tables": lambda x: {**x, "spatial_shapes": torch.tensor([(3, 2), (5, 6)]), "level_start_index": None},
    "no starts": lambda x: {**x, "level_start_index": None},
    "starts": lambda x: {**x, "level_start_index": torch.tensor([6, 0])},
    "list": lambda x: {**x, "spatial_shapes": [(5, 6), (3, 2)], "level_start_index": None},
    "other list": lambda x: {**x, "spatial_shapes": [(6, 5), (2, 3)], "level_start_index": None},
    "list of lists": lambda x: {**x, "spatial_shapes": [[5, 6], [3, 2]], "level_start_index": None},
    "point counts": lambda x: {**x, "num_points": [3, 3]},
    "no gradient of value": lambda x: {**x, "value": x["value"].detach()},
    "only value": lambda x: {n: y.detach() if isinstance(y, Tensor) and n != "value" else y for n, y in x.items()},
    "a parameter": lambda x: {**x, "value": nn.Parameter(x["value"].detach())},
    "a negative view": lambda x: {**x, "value": neg_view(-x["value"].detach()).requires_grad_()},
    "no mask": lambda x: {**x, "value_mask": None} if "value_mask" in x else x,
    "boxes": lambda x: x if "value_mask" not in x else {
        **x, "reference_points": torch.cat([x["reference_points"].detach(), torch.full((2, 7, 2, 2), 0.3)], -1)
    },
    "one reference for all levels": lambda x: x if "value_mask" not in x else {
        **x, "reference_points": x["reference_points"].detach()[:, :, :1].requires_grad_()
    },
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_call_gives_its_own_result(op, inputs, change):
    changed = CHANGES[change](inputs)
    expected, of_changed = by_registered_ops(op, inputs), by_registered_ops(op, changed)
    for arguments, result in (
        *[(inputs, expected)] * 3, *[(changed, of_changed)] * 3, (inputs, expected), (changed, of_changed),
    ):  # fmt: skip
        assert_equal(run(op, arguments, "auto"), result)


def test_every_kernel_gives_the_same_result_again(make_inputs, op, kernel, dtype, deterministic):
    inputs = make_inputs(op, CASE, dtype, kernel)
    first = run(op, inputs, kernel)
    for _ in range(3):
        for (name, tensor), before in zip(run(op, inputs, kernel).named().items(), first.named().values(), strict=True):
            assert torch.equal(tensor, before), name


def test_ordinary_calls_skip_the_registered_ops(op, inputs):
    for _ in range(3):
        assert registered(lambda: run(op, inputs, "cpu")) == set()
    with Seen():
        assert registered(lambda: run(op, inputs, "cpu")) == {op, f"{op}_backward"}


def test_a_call_like_an_earlier_one_is_not_checked_again(op, call, inputs, monkeypatch):
    call(**inputs)
    monkeypatch.setattr(ops()[op], "prepare", None)
    call(**inputs)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        call(**{**inputs, "level_start_index": None})


@pytest.mark.parametrize("entry", TABLE, ids=label)
def test_later_calls_name_a_malformed_argument_too(entry):
    op, argument, passed, error, message = entry
    samples = "sampling_locations" if op == "ms_deform_attn" else "sampling_offsets"
    good = sample_inputs(op, CASE, torch.float32)
    listed = {**good, "spatial_shapes": list(CASE.shapes), "level_start_index": None}
    for inputs in (good, listed, good, listed):
        getattr(dino_kernels, op)(**inputs)
    assert kept(op) == 2
    for _ in range(2):
        with pytest.raises(error) as caught:
            getattr(dino_kernels, op)(**{**good, argument: passed})
        assert str(caught.value) == f"{op}: {message.format(samples=samples)}"


@pytest.mark.parametrize(
    ("argument", "right", "wrong"),
    [
        ("spatial_shapes", [(5, 6), (3, 2)], [(5.0, 6), (3, 2)]),
        ("spatial_shapes", [(5, 6), (3, 2)], [(5, 6), (3, torch.tensor(2))]),
        ("spatial_shapes", [(5, 6), (3, 2)], [(5, 6, 3), (2,)]),
        ("num_points", [1, 5], [1.0, 5]),
        ("num_points", [1, 5], [5, 1, 0]),
    ],
    ids=str,
)
def test_equal_numbers_that_are_not_integers_are_refused(op, argument, right, wrong):
    inputs = sample_inputs(op, UNEVEN, torch.float32) | {"level_start_index": None}
    for _ in range(3):
        getattr(dino_kernels, op)(**{**inputs, argument: right})
    assert kept(op) == 1
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=f"^{op}: {argument} must be "):
            getattr(dino_kernels, op)(**{**inputs, argument: wrong})


def test_sizes_that_can_be_read_once_are_read_once(op, call, inputs):
    inputs["level_start_index"] = None
    expected = call(**inputs)
    for _ in range(3):
        torch.testing.assert_close(call(**{**inputs, "spatial_shapes": zip((5, 3), (6, 2), strict=True)}), expected)


def test_arrays_are_checked_in_each_call(op, call, inputs):
    """The bytes of an array do not contain its shape."""
    np = pytest.importorskip("numpy")
    inputs["level_start_index"] = None
    for _ in range(3):
        call(**{**inputs, "spatial_shapes": np.array([(5, 6), (3, 2)])})
    assert kept(op) == 0


def test_a_table_changed_in_place_is_noticed(op, inputs):
    table, starts = inputs["spatial_shapes"], inputs["level_start_index"]
    for _ in range(3):
        run(op, inputs, "cpu")
    table.copy_(torch.tensor([(6, 5), (2, 3)]))
    assert_equal(run(op, inputs, "cpu"), by_registered_ops(op, inputs, "cpu"))
    starts.copy_(torch.tensor([6, 0]))
    assert_equal(run(op, inputs, "cpu"), by_registered_ops(op, inputs, "cpu"))
    starts.copy_(torch.tensor([0, 31]))
    with pytest.raises((ValueError, RuntimeError), match="level_start_index"):
        run(op, inputs, "cpu")


def test_a_table_changed_between_forward_and_backward_is_noticed(op, call, inputs):
    for _ in range(3):
        run(op, inputs, "cpu")
    output = call(**inputs)
    inputs["spatial_shapes"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_list_changed_in_place_is_noticed(op, call, inputs):
    shapes = [[5, 6], [3, 2]]
    inputs |= {"spatial_shapes": shapes, "level_start_index": None}
    for _ in range(3):
        call(**inputs)
    shapes[0][0] = 6
    with pytest.raises(ValueError, match="value must have S = 42 rows"):
        call(**inputs)


def test_gradients_follow_grad_mode_and_inference_mode(op, call, inputs):
    for _ in range(2):
        for _ in range(2):
            with torch.no_grad():
                assert not call(**inputs).requires_grad
        for _ in range(2):
            assert call(**inputs).requires_grad
        for _ in range(2):
            with torch.inference_mode():
                assert call(**inputs).is_inference()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                assert call(**inputs).dtype == torch.float32


def test_inference_tensors_are_still_refused_for_backward(op, call, inputs):
    with torch.inference_mode():
        value = inputs["value"].detach().clone()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            call(**{**inputs, "value": value})


def test_double_backward_is_refused_in_later_calls(op, call, inputs):
    for _ in range(3):
        run(op, inputs, "cpu")
    (grad,) = torch.autograd.grad(call(**inputs).square().sum(), inputs["value"], create_graph=True)
    with pytest.raises(RuntimeError, match=f"^{op}: double backward is not implemented"):
        grad.square().sum().backward()


def test_saved_inputs_changed_in_place_are_refused_in_later_calls(op, call, inputs):
    for _ in range(3):
        run(op, inputs, "cpu")
    value = inputs["value"] * 1
    output = call(**{**inputs, "value": value})
    value.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_each_call_checks_that_the_backend_supports_it(op, call, inputs, monkeypatch):
    from dino_kernels.ops._core import libraries

    for _ in range(3):
        call(**inputs, backend="cpu")
    monkeypatch.setattr(libraries, "CPU_MISSING", "no compiled library")
    with pytest.raises(UnsupportedError, match="backend 'cpu' cannot run this call: no compiled library"):
        call(**inputs, backend="cpu")


def test_deterministic_mode_changes_the_backend(op, call, inputs, monkeypatch):
    """In both directions: when it is enabled, and when it is disabled again."""

    def backend(name: str, refuses: bool) -> SimpleNamespace:
        def unsupported(*_: Any) -> str | None:
            return "not now" if torch.are_deterministic_algorithms_enabled() == refuses else None

        return SimpleNamespace(unsupported=unsupported, forward=lambda given: given.value.new_full((), ord(name)))

    monkeypatch.setattr(ops()[op], "modules", {"cuda": backend("a", True), "triton": backend("b", False)})
    inputs = {name: x.detach() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    try:
        for flag in (False, False, True, True, False):
            torch.use_deterministic_algorithms(flag)
            assert call(**inputs).item() == ord("b" if flag else "a")
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_tensor_is_kept_alive(op):
    inputs = sample_inputs(op, CASE, torch.float32)
    for _ in range(3):
        run(op, inputs, "cpu")
    assert kept(op) >= 1
    alive = [weakref.ref(x) for x in inputs.values() if isinstance(x, Tensor)]
    del inputs
    gc.collect()
    assert [reference() for reference in alive] == [None] * len(alive)


def test_few_calls_are_kept(op, call):
    for queries in range(1, 30):
        call(**sample_inputs(op, Case("many", 1, queries, 2, 4, ((3, 4),), (2,)), torch.float32))
    assert kept(op) == eager._LATEST


def test_alternating_calls_stay_known(op, inputs, monkeypatch):
    others = [sample_inputs(op, Case("other", 1, q, 2, 4, ((3, 4),), (2,)), torch.float32) for q in (3, 5, 6)]
    for _ in range(2):
        for each in (inputs, *others):
            run(op, each, "cpu")
    assert kept(op) == 4
    monkeypatch.setattr(ops()[op], "prepare", None)
    for each in (inputs, *others):
        run(op, each, "cpu")


def _own_leaf(argument: Any) -> Any:
    is_leaf = isinstance(argument, Tensor) and argument.requires_grad
    return argument.detach().requires_grad_() if is_leaf else argument


def test_threads_get_their_own_results(op):
    cases = [Case(f"thread{q}", 1, q, 2, 4, ((3, 4),), (2,)) for q in range(1, 13)]
    inputs = [sample_inputs(op, case, torch.float32, seed=case.queries) for case in cases]
    expected = [by_registered_ops(op, each, "cpu") for each in inputs]
    errors: list[BaseException] = []

    def work(first: int) -> None:
        # PyTorch 2.13 can deadlock where two threads build graphs on one leaf: its mutex and the GIL in either order.
        own = [{name: _own_leaf(x) for name, x in each.items()} for each in inputs]
        try:
            for turn in range(40):
                number = (first + turn) % len(inputs)
                assert_equal(run(op, own[number], "cpu"), expected[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.parametrize(("passes", "most"), [("forward", 70), ("forward + backward", 180)])
@pytest.mark.parametrize("shapes", ["list", "tensor"])
def test_a_call_like_an_earlier_one_calls_few_functions(op, passes, most, shapes):
    """Through the registered op there were 165 and 266, including those of `torch.autograd.grad`."""
    repeated = host._call_of(f"{op}, {shapes}, {passes}")
    for _ in range(3):
        repeated()
    assert sum(host._functions(repeated)) <= most
