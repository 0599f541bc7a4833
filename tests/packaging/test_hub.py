"""The kernel for the Hugging Face kernel hub: compiled here without kernel-builder, and loaded by `kernels`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_kernels import ms_deform_attn
from dino_kernels.testing import CASES, Case, assert_result_accurate, sample_inputs
from dino_kernels.testing.accuracy import Result, random_grad_output

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "csrc"))
from build_backend import TORCH_TARGET, find_compiler, find_torch  # noqa: E402

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(sys.platform != "linux", reason="the hub's kernels are for Linux"),
]
ID = "_ms_deform_attn_test"
# What kernel-builder writes beside the sources: the macros of the bindings, and the namespace of the ops.
REGISTRATION = """
#include <Python.h>
#define STABLE_TORCH_LIBRARY_EXPAND(name, m) STABLE_TORCH_LIBRARY(name, m)
#define REGISTER_EXTENSION_(name)                                                \\
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, #name, nullptr, 0, nullptr, \\
                               nullptr, nullptr, nullptr, nullptr};              \\
  PyMODINIT_FUNC PyInit_##name() { return PyModuleDef_Init(&module); }
#define REGISTER_EXTENSION(name) REGISTER_EXTENSION_(name)
"""
OPS = f"""
import torch
from . import {ID}
ops = torch.ops.{ID}
def add_op_namespace_prefix(name): return "{ID}::" + name
"""


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    load("hub_export", ROOT / "csrc/hub/export.py").export(root)
    return root


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """Compile the CPU kernels, portable ones only, into the folder of a build variant."""
    variant = source / "build" / f"torch-stable-abi210-cpu-{platform.machine()}-linux"
    package = variant / "ms_deform_attn"
    variant.mkdir(parents=True)
    for path in (source / "torch-ext/ms_deform_attn").glob("*.py"):
        (variant / path.name).write_text(path.read_text())
    (variant / "_ops.py").write_text(OPS)
    metadata = {
        "name": "ms-deform-attn",
        "id": ID,
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    metadata["digest"] = {"algorithm": "sha256", "files": {}}
    (variant / "metadata.json").write_text(json.dumps(metadata))
    (source / "registration.h").write_text(REGISTRATION)
    torch_folder, python = find_torch(), sysconfig.get_path("include")
    includes = [f"-I{source}", f"-I{source / 'csrc'}", f"-I{source / 'csrc/ms_deform_attn'}"]
    includes += ["-isystem", f"{torch_folder}/include", "-isystem", python]
    flags = [
        "-std=c++20",
        "-O0",
        "-fPIC",
        "-fvisibility=hidden",
        "-shared",
        TORCH_TARGET,
        "-DPy_LIMITED_API=0x03090000",
    ]
    flags += [f"-DTORCH_EXTENSION_NAME={ID}", "-DDINO_PLAIN_ONLY"]
    files = [*sorted((source / "sources").glob("*.cpp")), source / "torch-ext/torch_binding.cpp"]
    libraries = [f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10", "-o", str(variant / f"{ID}.abi3.so")]
    command = [*find_compiler(), *flags, *includes, *map(str, files), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not package.exists()
    return source


@pytest.fixture(scope="module")
def kernel(built: Path) -> Any:
    """The kernel as `kernels` loads it; without that package, as it would."""
    if importlib.util.find_spec("kernels"):
        return importlib.import_module("kernels").get_local_kernel(built / "build", backend="cpu")
    (variant,) = (built / "build").iterdir()
    spec = importlib.util.spec_from_file_location(
        ID, variant / "__init__.py", submodule_search_locations=[str(variant)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[ID] = module
    spec.loader.exec_module(module)
    return module


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def layer_arguments(inputs: dict[str, Any], case: Case) -> tuple[Any, ...]:
    shapes = torch.tensor(case.shapes)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    return (
        inputs["value"],
        shapes,
        [*case.shapes],
        starts,
        inputs["sampling_locations"],
        inputs["attention_weights"],
        64,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["encoder_masked", "decoder", "channels_3", "hostile", "no_queries"])
def test_the_layer_is_accurate_forward_and_backward(kernel, name, dtype):
    case = named(name)
    inputs = sample_inputs("ms_deform_attn", case, dtype)
    output = kernel.layers.MultiScaleDeformableAttention()(*layer_arguments(inputs, case))
    leaves = {name: inputs[name] for name in ("value", "sampling_locations", "attention_weights")}
    grads = torch.autograd.grad(output, [*leaves.values()], random_grad_output(output))
    assert_result_accurate("ms_deform_attn", inputs, Result(output.detach(), dict(zip(leaves, grads, strict=True))))


def test_the_functions_are_those_of_the_original_extension(kernel):
    case = named("decoder")
    inputs = sample_inputs("ms_deform_attn", case, torch.float32, requires_grad=False)
    value, shapes, _, starts, locations, weights, step = layer_arguments(inputs, case)
    output = kernel.ms_deform_attn_forward(value, shapes, starts, locations, weights, step)
    expected = ms_deform_attn(value, shapes, starts, locations, weights)
    torch.testing.assert_close(output, expected)
    grads = kernel.ms_deform_attn_backward(value, shapes, starts, locations, weights, output, step)
    assert [grad.shape for grad in grads] == [value.shape, locations.shape, weights.shape]


def test_positions_in_16_bit_become_float32(kernel):
    case = named("decoder")
    inputs = sample_inputs("ms_deform_attn", case, torch.bfloat16, requires_grad=False)
    value, shapes, sizes, starts, locations, weights, step = layer_arguments(inputs, case)
    rounded = locations.bfloat16().requires_grad_()
    layer = kernel.layers.MultiScaleDeformableAttention()
    output = layer(value, shapes, sizes, starts, rounded, weights, step)
    output.sum().backward()
    assert rounded.grad is not None and rounded.grad.dtype == torch.bfloat16
    assert torch.equal(output, layer(value, shapes, sizes, starts, rounded.detach().float(), weights, step))


def test_the_layer_compiles_without_a_graph_break(kernel):
    case = named("decoder")
    layer = torch.compile(kernel.layers.MultiScaleDeformableAttention(), fullgraph=True, backend="aot_eager")
    inputs = sample_inputs("ms_deform_attn", case, torch.float32)
    output = layer(*layer_arguments(inputs, case))
    output.sum().backward()
    assert inputs["value"].grad.abs().sum() > 0


def test_wrong_arguments_are_refused(kernel):
    case = named("decoder")
    value, *others = layer_arguments(sample_inputs("ms_deform_attn", case, torch.float32, requires_grad=False), case)
    with pytest.raises(RuntimeError, match="rows of value; check spatial_shapes"):
        kernel.layers.MultiScaleDeformableAttention()(value[:, 1:], *others)


def test_kernel_builder_reads_the_description(source):
    rust = pytest.importorskip("kernels._rust")
    assert [str(backend) for backend in rust.Build.open(source).general.backends] == ["cpu", "cuda"]
    description = (source / "build.toml").read_text()
    named = {line.strip(' ",') for line in description.splitlines() if line.startswith("  ")}
    assert all((source / name).is_file() for name in named)
    assert {f"sources/{path.name}" for path in (source / "sources").iterdir()} <= named


def test_python_files_import_only_torch_and_themselves(source):
    for path in (source / "torch-ext").rglob("*.py"):
        lines = [line.split()[1] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert {name.partition(".")[0] for name in lines} <= {"", "torch", "__future__", "collections", "typing"}


def test_transformers_run_it_by_kernelize(built, monkeypatch):
    kernels = pytest.importorskip("kernels")
    transformers = pytest.importorskip("transformers")
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, out_features=["stage2", "stage3", "stage4"]
        ),
        backbone=None, use_pretrained_backbone=False, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4, num_queries=10,
    )  # fmt: skip
    module = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
    original = module.MultiScaleDeformableAttention
    if not hasattr(
        original, "kernel_layer_name"
    ):  # transformers marks it only for the versions of kernels that it knows
        for name in ("kernel_layer_name", "kernel_condition"):
            monkeypatch.setattr(original, name, None, raising=False)  # so that the class is restored
        kernels.replace_kernel_forward_from_hub(original, "MultiScaleDeformableAttention")
    torch.manual_seed(0)
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(pixels).logits
    repository = kernels.LocalLayerRepository(built / "build", layer_name="MultiScaleDeformableAttention")
    calls = []
    mapping = {"MultiScaleDeformableAttention": {"cpu": repository}}
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        fast = kernels.kernelize(model, mode=kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE, device="cpu")
    layers = [module for module in fast.modules() if type(module).__name__ == "MultiScaleDeformableAttention"]
    assert layers
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        torch.testing.assert_close(fast(pixels).logits, expected, rtol=1e-4, atol=1e-4)
    assert calls and all("ms_deform_attn" in layer.forward.__func__.__module__ for layer in layers)
