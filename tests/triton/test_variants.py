"""Triton's kernels: how many variants are compiled, and that all compile for GPUs that are not here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dino_kernels.ops._core import triton_support
from dino_kernels.ops._core.arguments import HungarianMatchArguments
from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments as Problems
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.ops._matching import cost_arguments
from dino_kernels.ops.hungarian_match import triton as match_backend
from dino_kernels.ops.linear_sum_assignment import triton as assignment_backend
from dino_kernels.ops.matching_cost import triton as cost_backend
from dino_kernels.ops.ms_deform_attn import triton as attention_backend
from dino_kernels.testing import DTYPES, Case, run, sample_inputs
from tests.triton.code import lane_offsets, warp_instructions
from tests.triton.examples import predictions, truth

pytest.importorskip("triton", reason=triton_support.MISSING)


class Launches:
    """A stand-in for a kernel: keeps the arguments of each launch, and compiles the kernel as a launch would."""

    def __init__(self, kernel: Any, configs: Sequence[Any] = ()) -> None:
        self.kernel = kernel
        self.configs = [config.kwargs | {"num_warps": config.num_warps} for config in configs] or [{}]
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.calls.extend((args, options | config) for config in self.configs)

        return launch

    def _bound(self, call: int, target: Any) -> tuple[Any, ...]:
        from triton.compiler.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        args, options = self.calls[call]
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        return backend, options | {"debug": False}, *bind(*args, debug=False, **options)

    def cache_keys(self, target: Any) -> set[str]:
        """Under which Triton would look for compiled kernels."""
        from triton.runtime.jit import compute_cache_key

        bound = [self._bound(call, target) for call in range(len(self.calls))]
        return {compute_cache_key({}, specialization, options) for _, _, _, specialization, options in bound}

    def compile(self, call: int, target: Any) -> dict[str, Any]:
        """The results of all steps of the compiler, by name."""
        import triton
        from triton.compiler import ASTSource

        backend, given, arguments, specialization, options = self._bound(call, target)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, given, arguments, specialization, options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options.__dict__).asm


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> tuple[Launches, Launches]:
    """Launches of the kernels of cost and assignment, by their own backends, on CPU tensors."""
    from dino_kernels.ops.linear_sum_assignment import triton_kernel as assignment_kernel
    from dino_kernels.ops.linear_sum_assignment import triton_scratch
    from dino_kernels.ops.matching_cost import triton_kernel as cost_kernel

    cost, assignment = Launches(cost_kernel.matching_cost), Launches(assignment_kernel.linear_sum_assignment)
    monkeypatch.setattr(cost_backend, "kernels", lambda: SimpleNamespace(matching_cost=cost))
    replaced = SimpleNamespace(linear_sum_assignment=assignment), triton_scratch
    monkeypatch.setattr(assignment_backend, "kernels", lambda: replaced)
    return cost, assignment


def gpu(arch: int | str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)


def test_numbers_of_targets_and_queries_do_not_make_variants(launches):
    cost, assignment = launches
    for count in range(50):  # alignment changes too
        logits, boxes = predictions(torch.float32, 1.0, *[(1 + count % 3, 20 + count)] * (1 + count % 9), images=2)
        logits = [source[:, :, count % 2 :] for source in logits]
        boxes = [source[:, :, count % 2 :] for source in boxes]
        targets = truth((count, 1))
        arguments = cost_arguments("hungarian_match", logits, boxes, targets, "dino", None, {})
        match_backend.forward(HungarianMatchArguments(*arguments, "lowest", False))
    assert len(assignment.calls) == 50 and len(cost.calls) > 50
    assert len(cost.cache_keys(gpu(90))) == 1
    assert len(assignment.cache_keys(gpu(90))) == 1


def test_the_count_of_variants_sees_another_dtype(launches):
    _, assignment = launches
    for dtype in (torch.float32, torch.float64):
        assignment_backend.forward(Problems(torch.zeros(1, 2, 3, dtype=dtype), None, None, 2, False, "lowest", False))
    assert len(assignment.cache_keys(gpu(90))) == 2


def launch_all_variants() -> None:
    targets = truth((2, 0, 1))
    extra = torch.zeros(1, 3, 9)
    for dtype, preset, with_boxes, extra_cost in (
        (torch.float32, "dino", True, None),
        (torch.bfloat16, "detr", True, extra),
        (torch.float16, "dino", False, extra),
        (torch.float64, "detr", False, None),
    ):
        logits, boxes = predictions(dtype, 1.0, (2, 9))
        weights = None if with_boxes else (1.0, 0.0, 0.0)
        given = boxes if with_boxes else None
        arguments = cost_arguments("cost", logits, given, targets, preset, extra_cost, {"weights": weights})
        cost_backend.forward(arguments)
    cost = torch.zeros(1, 4, 5)
    notes = torch.zeros(1, 2, 3, dtype=torch.int32)
    offsets, sizes = torch.tensor([0, 1, 4]), torch.tensor([[3, 4]])
    assignment_backend.forward(Problems(cost, offsets, None, 4, False, "lowest", False), notes)
    assignment_backend.forward(Problems(cost, offsets, None, 4, False, "scipy", True), notes)
    assignment_backend.forward(Problems(cost.double(), None, None, 4, False, "lowest", True))
    assignment_backend.forward(Problems(cost.double(), None, sizes, 4, False, "scipy", False))


@pytest.fixture(autouse=True)
def one_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile each variant once a session, whichever worker of pytest-xdist needs it."""
    own = tmp_path_factory.getbasetemp()
    session = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    monkeypatch.setenv("TRITON_CACHE_DIR", str(session / "triton"))


def compile_all(arch: int | str, kernels: Sequence[Launches], launch: Callable[[], object]) -> None:
    """Compile all variants for sm_90, and one of each kernel for another GPU."""
    from triton.backends import backends

    if gpu(arch).backend not in {name.replace("nvidia", "cuda").replace("amd", "hip") for name in backends}:
        pytest.skip(f"this Triton has no compiler for {arch}")
    launch()
    for of_kernel in kernels:
        assert len(of_kernel.cache_keys(gpu(arch))) == len(of_kernel.calls)
        for call in range(len(of_kernel.calls))[: None if arch == 90 else 1]:
            compiled = of_kernel.compile(call, gpu(arch))
            if isinstance(arch, int):
                assert f".target sm_{arch}" in compiled["ptx"] and of_kernel.kernel.__name__ in compiled["ptx"]
            else:
                assert arch in compiled["amdgcn"]


@pytest.mark.parametrize("arch", [80, 90, "gfx942"], ids=str)
def test_every_variant_of_matching_compiles_for_a_gpu(arch, launches):
    compile_all(arch, launches, launch_all_variants)


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> tuple[Launches, Launches]:
    """Launches of the kernels of deformable attention, forward and backward, by their backend, on CPU tensors."""
    from dino_kernels.ops.ms_deform_attn import triton_tuned as tuned

    forward = Launches(tuned.ms_deform_attn_forward, tuned.forward_many.configs)
    backward = Launches(tuned.ms_deform_attn_backward, tuned.backward_many.configs)
    kernels = SimpleNamespace(forward_few=forward, forward_many=forward, backward_few=backward, backward_many=backward)
    monkeypatch.setattr(attention_backend, "kernels", lambda: kernels)
    monkeypatch.setattr(triton_support, "DEVICES", ("cpu",))
    return forward, backward


@pytest.fixture
def first_configurations(attention: tuple[Launches, Launches], everything: bool) -> tuple[Launches, Launches]:
    """The first configuration of each kernel; in a long run all of them."""
    for launches in attention:
        launches.configs = launches.configs if everything else launches.configs[:1]
    return attention


def call_attention(op: str, case: Case, dtype: torch.dtype, as_list: bool = False) -> None:
    inputs = sample_inputs(op, case, dtype)
    if as_list:
        inputs |= {"spatial_shapes": case.shapes, "level_start_index": None}
    run(op, inputs, "triton")


@pytest.mark.parametrize("op", ["ms_deform_attn", "fused_ms_deform_attn"])
@pytest.mark.parametrize("as_list", [False, True], ids=["table", "list"])
def test_sizes_of_images_and_batches_do_not_make_variants(attention, op, as_list):
    for height in range(1, 8):
        for width, queries in ((1, 7), (5, None), (16, 16)):
            shapes = ((height, width), (1, width))
            count = queries or sum(h * w for h, w in shapes)
            call_attention(op, Case("some", 1 + height % 3, count, 8, 32, shapes, (4, 4)), torch.float32, as_list)
    for launches in attention:
        assert len(launches.calls) == 21 * len(launches.configs)
        assert len(launches.cache_keys(gpu(90))) == len(launches.configs)


# Of every dtype, and of every argument that may be missing. Each level multiplies the time of compilation.
VARIANTS = [
    ("fused_ms_deform_attn", Case("encoder", 1, 9, 8, 32, ((3, 2),), (4,)), torch.bfloat16),
    ("fused_ms_deform_attn", Case("odd", 1, 9, 3, 7, ((3, 2), (1, 1)), (3, 0), 4, mask=True), torch.float16),
    ("ms_deform_attn", Case("classic", 1, 9, 8, 64, ((3, 2),), (8,)), torch.float32),
    ("ms_deform_attn", Case("double", 1, 9, 2, 1, ((3, 2),), (2,)), torch.float64),
]


@pytest.mark.parametrize("arch", [80, 90, "gfx942"], ids=str)
def test_every_variant_of_attention_compiles_for_a_gpu(arch, first_configurations):
    compile_all(arch, first_configurations, lambda: [call_attention(*each) for each in VARIANTS])


def test_the_deterministic_backward_compiles_for_a_gpu(first_configurations, deterministic):
    _, backward = first_configurations
    compile_all(90, [backward], lambda: call_attention(*VARIANTS[0], as_list=True))


def assert_whole_sectors(ptx: str, levels: int) -> None:
    """Assert that 4 lanes add half of a row of 32 float32 sums: 64 bytes, two whole sectors of 32."""
    adds = re.findall(r"\b(?:red|atom)\.[\w.]*add\.v4\.f32\b.*?\[ *(%rd\d+)", ptx)
    assert len(adds) == 8 * levels, "of each corner one half, and the other"
    for address in adds:
        offsets = lane_offsets(ptx, address)
        for first in range(0, 32, 4):
            assert [offset - offsets[first] for offset in offsets[first : first + 4]] == [0, 16, 32, 48]


# Per 8 (query, head) items, whatever the number of warps: once, and for each level of 4 samples. For 4 levels they are
# a little above what is in the README.
CEILINGS = {
    ("forward", "bf16"): (430, 530),
    ("forward", "fp32"): (350, 500),
    ("backward", "bf16"): (420, 1020),
    ("backward", "fp32"): (390, 990),
}


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_warps_share_nothing_stay_within_counted_instructions_and_add_whole_sectors(
    first_configurations, everything, name, tmp_path
):
    """No conversion through shared memory, whose barriers would tie a program's warps together."""
    shapes = ((9, 9), (5, 5), (2, 2), (1, 1)) if everything else ((9, 9), (5, 5))
    rows = sum(height * width for height, width in shapes)
    case = Case("encoder", 1, rows, 8, 32, shapes, (4,) * len(shapes), layout="local")
    call_attention("fused_ms_deform_attn", case, DTYPES[name])
    for direction, launches in zip(("forward", "backward"), first_configurations, strict=True):
        for call in range(len(launches.calls)):
            compiled = launches.compile(call, gpu(90))
            trips = {"forward": 2, "backward": 4}[direction]  # the forward pass takes two samples at a time
            executed = warp_instructions(compiled, trips, tmp_path)
            assert executed["LDS"] == executed["STS"] == executed["LDL"] == executed["STL"] == 0
            assert executed["BAR"] == {"forward": 0, "backward": 2}[direction], "around the softmax's gradient alone"
            once, of_level = CEILINGS[direction, name]
            assert executed.total() <= once + of_level * len(shapes)
            if direction == "backward":
                assert_whole_sectors(compiled["ptx"], len(shapes))


def test_the_reason_why_it_cannot_run_is_given(monkeypatch):
    cost = torch.zeros(2, 3)
    logits, boxes = predictions(torch.float32, 1.0, (1, 9))
    for op, arguments, name in (
        ("linear_sum_assignment", (cost,), "cost"),
        ("matching_cost", (logits, boxes, truth((1, 0, 2))), "logits"),
        ("hungarian_match", (logits, boxes, truth((1, 0, 2))), "logits"),
    ):
        prepared = ops()[op].prepare(*arguments)
        assert ops()[op].unsupported("triton", prepared) == f"it runs on CUDA tensors, {name} is on cpu"
    monkeypatch.setattr(triton_support, "INSTALLED", False)
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda", 0))
    assert triton_support.unsupported("cost", on_gpu) == triton_support.MISSING
    monkeypatch.setattr(triton_support, "INSTALLED", True)
    assert triton_support.unsupported("cost", on_gpu) is None
