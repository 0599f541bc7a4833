"""The nodes alone in ONNX Runtime: numbers, types, threads, and what they say of wrong inputs."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import dino_kernels
import dino_kernels.onnx
from dino_kernels.testing import CASES, DTYPES, Case, Result, assert_result_accurate, sample_inputs

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from tests.onnx import nodes  # noqa: E402

pytestmark = pytest.mark.skipif(
    dino_kernels.onnx.why_missing() is not None, reason=str(dino_kernels.onnx.why_missing())
)
OPS = tuple(nodes.NAMES)
SMALL = Case("small", 2, 9, 4, 8, ((5, 7), (2, 3)), (2, 2), mask=True)


def inputs_of(op: str, case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return sample_inputs(op, case, dtype, requires_grad=False)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_float32_keeps_the_tolerance_rule(op, case):
    inputs = inputs_of(op, case)
    output = nodes.run_once(op, inputs)
    assert_result_accurate(op, inputs, Result(output, {}), "ONNX Runtime")


# A typical encoder, a decoder with unequal levels, partial vectors, nothing to do, and borders.
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("encoder", "rtdetr", "channels_36", "no_queries")])
@pytest.mark.parametrize("dtype", [DTYPES[name] for name in ("fp64", "bf16", "fp16")], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_other_types_keep_the_tolerance_rule(op, case, dtype):
    inputs = inputs_of(op, case, dtype)
    output = nodes.run_once(op, inputs)
    assert_result_accurate(op, inputs, Result(output, {}), "ONNX Runtime")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_samples_may_be_float32_beside_a_value_of_16_bits(op, dtype):
    inputs = inputs_of(op, SMALL, dtype)
    for name in ("sampling_offsets", "attention_logits", "attention_weights"):
        if name in inputs:
            inputs[name] = inputs[name].float() + 1e-4
    output = nodes.run_once(op, inputs)
    assert torch.equal(output, getattr(dino_kernels, op)(**inputs, backend="cpu"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", OPS)
def test_bits_are_those_of_the_cpu_backend_for_any_number_of_threads(op, threads):
    case = Case("ranges", 2, 700, 8, 32, ((20, 30), (10, 15)), (4, 4), mask=True, layout="local")
    inputs = inputs_of(op, case)
    assert torch.equal(nodes.run_once(op, inputs, threads), getattr(dino_kernels, op)(**inputs, backend="cpu"))


@pytest.mark.parametrize("op", OPS)
def test_levels_may_start_anywhere(op):
    inputs = inputs_of(op, SMALL)
    gap = torch.full((2, 3, 4, 8), 1e3)  # rows of no level
    inputs["value"] = torch.cat([gap, inputs["value"]], 1)
    inputs["level_start_index"] = inputs["level_start_index"] + 3
    if "value_mask" in inputs:
        inputs["value_mask"] = torch.cat([torch.zeros(2, 3, dtype=torch.bool), inputs["value_mask"]], 1)
    assert torch.equal(nodes.run_once(op, inputs), getattr(dino_kernels, op)(**inputs, backend="cpu"))


@pytest.mark.parametrize("op", OPS)
def test_one_session_takes_any_sizes(op):
    inputs, points = nodes.node_inputs(op, inputs_of(op, SMALL))
    running = nodes.session(nodes.model(op, inputs, {"num_points": points}))
    for batch, queries, heads, channels, side in ((1, 1, 1, 1, 1), (3, 50, 8, 32, 9), (0, 4, 2, 8, 3), (2, 0, 3, 5, 2)):
        case = Case("any", batch, queries, heads, channels, ((side, 2 * side), (1, side)), (2, 2), mask=True)
        arguments = inputs_of(op, case)
        output = nodes.run(running, nodes.node_inputs(op, arguments)[0])
        assert torch.equal(output, getattr(dino_kernels, op)(**arguments, backend="cpu"))


def test_sessions_run_in_several_threads_at_once():
    op, cases = OPS[0], [Case(f"{q}", 2, q, 8, 32, ((20, 30), (10, 15)), (4, 4)) for q in (40, 300, 900, 5)]
    arguments = [inputs_of(op, case) for case in cases]
    expected = [getattr(dino_kernels, op)(**each, backend="cpu") for each in arguments]
    prepared = [nodes.node_inputs(op, each) for each in arguments]
    running = [nodes.session(nodes.model(op, prepared[0][0], {"num_points": [4, 4]}), threads) for threads in (1, 2)]

    def work(i: int) -> bool:
        return torch.equal(nodes.run(running[i % 2], prepared[i % 4][0]), expected[i % 4])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(64)))


def test_the_output_has_a_type_and_sizes_before_a_run():
    inputs, points = nodes.node_inputs(OPS[0], inputs_of(OPS[0], SMALL))
    output = nodes.session(nodes.model(OPS[0], inputs, {"num_points": points})).get_outputs()[0]
    assert output.type == "tensor(float)"
    assert output.shape[:2] == ["value_0", "sampling_offsets_1"] and len(output.shape) == 3


def changed(name: str, shape: tuple[int, ...] | None = None, numbers: Any = None) -> dict[str, torch.Tensor]:
    if shape is None:
        return {name: torch.tensor(numbers)}
    return {name: torch.zeros(shape, dtype=torch.bool if name == "value_mask" else torch.float32)}


WRONG = [
    (changed("value", (2, 41, 32)), r"value must be \[B, S, M, D\], got \[2, 41, 32\]"),
    (changed("value", (2, 40, 4, 8)), "value has S = 40 rows, spatial_shapes describes 41"),
    (changed("value", (2, 41, 5, 8)), r"sampling_offsets must be .* = \[2, 9, 5, 4, 2\], got \[2, 9, 4, 4, 2\]"),
    (changed("value", (1, 41, 4, 8)), "sampling_offsets must be"),
    (changed("spatial_shapes", numbers=[[5, 7]]), r"spatial_shapes must be .* = \[2, 2\], got \[1, 2\]"),
    (changed("spatial_shapes", numbers=[5, 7, 2, 3]), r"spatial_shapes must be .* got \[4\]"),
    (
        changed("spatial_shapes", numbers=[[5, 7], [0, 3]]),
        r"spatial_shapes has \(0, 3\) for level 1; sizes must be",
    ),
    (changed("spatial_shapes", numbers=[[-5, -7], [2, 3]]), r"spatial_shapes has \(-5, -7\) for level 0"),
    (changed("spatial_shapes", numbers=[[2**62, 4], [2, 3]]), "fit into the S = 41 rows"),
    (changed("spatial_shapes", numbers=[[2**32 + 5, 7], [2, 3]]), "fit into the S = 41 rows"),
    (changed("spatial_shapes", numbers=[[5, 7], [5, 7]]), "spatial_shapes describes 70"),
    (changed("reference_points", (2, 9, 2, 3)), r"reference_points must be \[B, Q, L, 2 or 4\] = \[2, 9, 2, 2\], got"),
    (changed("reference_points", (2, 9, 1, 4)), r"reference_points must be .* = \[2, 9, 2, 4\], got \[2, 9, 1, 4\]"),
    (changed("sampling_offsets", (2, 9, 4, 4)), r"sampling_offsets must be \[B, Q, M, K, 2\], got"),
    (changed("sampling_offsets", (2, 8, 4, 4, 2)), r"attention_logits must be .* = \[2, 8, 4, 4\], got \[2, 9, 4, 4\]"),
    (changed("attention_logits", (2, 9, 4, 5)), r"attention_logits must be \[B, Q, M, K\] = \[2, 9, 4, 4\], got"),
    (changed("value_mask", (2, 40)), r"value_mask must be \[B, S\] = \[2, 41\], got \[2, 40\]"),
    (changed("level_start_index", numbers=[0]), r"level_start_index must be \[L\] = \[2\], got \[1\]"),
    (changed("level_start_index", numbers=[0, 36]), r"level 1 \(2 x 3\) starts at row 36 and ends after"),
    (changed("level_start_index", numbers=[-1, 35]), r"level 0 \(5 x 7\) starts at row -1"),
    (changed("level_start_index", numbers=[0, 2**63 - 1]), "level 1 .* starts at row"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[f"{i}_{next(iter(c))}" for i, (c, _) in enumerate(WRONG)])
def test_wrong_inputs_are_named_and_the_session_still_runs(change, message):
    arguments = inputs_of(OPS[0], SMALL)
    if "level_start_index" not in change:
        arguments["level_start_index"] = None
    inputs, points = nodes.node_inputs(OPS[0], arguments)
    right = dict(inputs)
    # A file whose ranks fit the change.
    running = nodes.session(nodes.model(OPS[0], inputs | change, {"num_points": points}))
    with pytest.raises(Exception, match=f"FusedMSDeformAttn: .*{message}"):
        nodes.run(running, inputs | change)
    if next(iter(change.values())).dim() == right[next(iter(change))].dim():  # type: ignore[union-attr]
        expected = dino_kernels.fused_ms_deform_attn(**arguments, backend="cpu")
        assert torch.equal(nodes.run(running, right), expected)


@pytest.mark.parametrize("points", [[], [-1, 5], [2, 2**21], None])
def test_wrong_num_points_are_an_error_when_the_session_is_made(points):
    inputs, _ = nodes.node_inputs(OPS[0], inputs_of(OPS[0], SMALL))
    attributes = {} if points is None else {"num_points": np.array(points, dtype=np.int64)}
    with pytest.raises(Exception, match="num_points"):
        nodes.session(nodes.model(OPS[0], inputs, attributes))


def test_a_type_without_kernel_is_an_error_when_the_session_is_made():
    inputs, points = nodes.node_inputs(OPS[0], inputs_of(OPS[0], SMALL))
    inputs["sampling_offsets"] = inputs["sampling_offsets"].half()  # type: ignore[union-attr]
    with pytest.raises(Exception, match="FusedMSDeformAttn"):
        nodes.session(nodes.model(OPS[0], inputs, {"num_points": points}))


def outcome(running: Any, given: dict[str, Any]) -> torch.Tensor | str:
    try:
        return nodes.run(running, given)
    except Exception as error:
        return str(error)


@pytest.mark.parametrize("op", OPS)
def test_hostile_sizes_end_in_an_error_or_the_right_sizes(op):
    """Every size of every input is changed to small and strange ones; nothing may read or write elsewhere."""
    generator = np.random.default_rng(0)
    inputs, points = nodes.node_inputs(op, inputs_of(op, SMALL))
    running = nodes.session(nodes.model(op, inputs, {"num_points": points}), threads=2)
    outcomes = {True: 0, False: 0}
    for _, (name, tensor) in itertools.product(range(40), inputs.items()):
        assert tensor is not None
        shape = list(tensor.shape)
        for _ in range(generator.integers(1, 3)):
            shape[generator.integers(len(shape))] = int(generator.choice([0, 1, 2, 3, 5, 9, 64]))
        strange = tensor.new_zeros(shape)
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:
            strange += torch.from_numpy(generator.choice([-(2**63), -1, 0, 1, 2, 7, 2**31, 2**62], shape))
        given = inputs | {name: strange}
        output = outcome(running, given)
        outcomes[isinstance(output, torch.Tensor)] += 1
        if isinstance(output, str):
            assert "MSDeformAttn: " in output
        else:
            value, positions = given["value"], given.get("sampling_offsets", given.get("sampling_locations"))
            assert value is not None and positions is not None
            assert output.shape == (value.shape[0], positions.shape[1], value.shape[2:].numel())
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("name", ["fp64", "fp16"])
@pytest.mark.parametrize("op", OPS)
def test_the_kernel_of_the_type_runs_without_conversions(op, name, tmp_path):
    inputs, points = nodes.node_inputs(op, inputs_of(op, SMALL, DTYPES[name]))
    nodes.session(nodes.model(op, inputs, {"num_points": points}), optimized=tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds == [nodes.NAMES[op]]
