"""Files of every format and variant detect what their model detects; they say how to use them, and hold no path."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dino import commands
from dino.checkpoint import save_model
from dino.data import EvalTransform
from dino.export import export as export_file
from dino.export.attention import form_of
from dino.export.check import Comparison
from dino.export.description import ExportError
from dino.export.onnx_file import machine_paths
from dino.inference.detector import Detector
from tests.dino.export.export_toys import CATEGORIES, SIZE, VARIANTS, export, small_model
from tests.dino.tools_toys import noise_picture, write_split

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytestmark = pytest.mark.compiler


FITTING = noise_picture(*SIZE[::-1])
"""An image that a file of fixed size neither resizes nor pads."""


def fitting_detector(model):
    return Detector(model, CATEGORIES, transform=EvalTransform(*SIZE), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def quick():
    """Files without the exporter's own simplification, which takes half of the time; one variant has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", functools.partial(torch.onnx.export, optimize=False))
        yield


@pytest.fixture(scope="module")
def free(tmp_path_factory, quick):
    """A file of free size, by the command, with its run's folder."""
    folder = tmp_path_factory.mktemp("free")
    save_model(small_model(), folder / "run" / "best", CATEGORIES, {"image_size": {"short_side": 64, "long_side": 107}})
    path = folder / "model.onnx"
    assert commands.main(["export", "--checkpoint", str(folder / "run"), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def pair(free):
    """The file and its model, as detectors."""
    return Detector.from_exported(free), Detector.from_checkpoint(free.parent / "run", dtype="float32", device="cpu")


def equal(found, expected):
    """Whether detections are the same up to rounding, in any order of equal scores."""
    assert len(found) == len(expected) > 0
    assert sorted(found.names) == sorted(expected.names)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    for k in range(len(found)):
        same = [i for i in range(len(expected)) if expected.names[i] == found.names[k]]
        assert (found.boxes_xyxy[k] - expected.boxes_xyxy[same]).abs().amax(-1).min() < 1e-2  # pixels


def test_the_file_says_how_to_use_it_and_holds_no_path(free):
    model = onnx.load(free)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "mask": ["batch", "height", "width"],
        "logits": ["batch", 20, 3],
        "boxes": ["batch", 20, 4],
    }
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata["dino.categories"] == CATEGORIES.to_json()
    assert metadata["dino.preprocessing"]["short_side"] == 64
    assert not machine_paths(model) and b"site-packages" not in free.read_bytes()
    model.graph.node[0].metadata_props.add(key="trace", value='File "/home/someone/model.py", line 3')
    assert machine_paths(model)


@pytest.mark.parametrize("size", [(80, 60), (61, 140), (300, 20)])
def test_a_file_predicts_what_its_model_predicts(pair, size):
    found, expected = (detector.predict(noise_picture(*size), threshold=0.05) for detector in pair)
    if min(size) >= 60:
        equal(found, expected)
    else:  # padded to the least size
        assert len(found) > 0


def test_batches_tiles_folders_and_classes_work(pair, tmp_path):
    pictures = [noise_picture(80, 60), noise_picture(61, 90, seed=1), noise_picture(120, 70, seed=2)]
    for options in ({"batch_size": 2}, {"tile": 64, "batch_size": 3}, {"classes": ["dog"], "top_k": 4}):
        for found, expected in zip(*(d.predict(pictures, threshold=0.05, **options) for d in pair), strict=True):
            equal(found, expected)
    for k, picture in enumerate(pictures):
        picture.save(tmp_path / f"{k}.png")
    assert [len(found) for found in pair[0](tmp_path)] == [len(found) for found in pair[1](tmp_path)]
    assert "ONNX Runtime" in repr(pair[0]) and "3 classes" in repr(pair[0])


def test_evaluate_predict_and_benchmark_take_a_file(free, tmp_path, capsys):
    write_split(tmp_path / "data" / "valid")
    metrics = []
    for k, checkpoint in enumerate((free.parent / "run", free)):
        file = tmp_path / f"{k}.json"
        options = ["--checkpoint", checkpoint, "--data", tmp_path / "data", "--workers", 0, "--no-report"]
        assert commands.main(["evaluate", *map(str, options), "--metrics", str(file)]) == 0
        metrics.append(json.loads(file.read_text()))
    assert metrics[0]["AP"] == pytest.approx(metrics[1]["AP"], abs=1e-4)
    noise_picture().save(tmp_path / "picture.png")
    output = ["--output", tmp_path / "found", "--threshold", "0"]
    assert commands.main(["predict", "--checkpoint", *map(str, [free, *output, tmp_path / "picture.png"])]) == 0
    assert json.loads((tmp_path / "found" / "predictions.json").read_text())
    timed = ["--seconds", "0", "--batch-sizes", "1", "--image-size", "60", "80"]
    picture = str(tmp_path / "picture.png")
    assert commands.main(["benchmark", "--checkpoint", str(free), *timed]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^model +[\d.]+$", out, re.MULTILINE) and "backbone" not in out
    assert (
        commands.main(["predict", "--checkpoint", str(free), "--short-side", "9", str(tmp_path / "picture.png")]) == 2
    )
    assert "--short-side cannot change an exported file" in capsys.readouterr().err
    assert commands.main(["visualize", "--checkpoint", str(free), picture]) == 2
    assert "needs the model itself, got the exported file" in capsys.readouterr().err


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_exported(variant, monkeypatch, quick, tmp_path):
    model = small_model(monkeypatch, **VARIANTS[variant])
    if variant == "resnet18":
        monkeypatch.setattr(torch.onnx, "export", torch.onnx.export.func)  # type: ignore[attr-defined] - simplified
    exported = export(model, tmp_path / "model.onnx")
    assert max(comparison.within for comparison in exported.comparisons) < 1e-4
    assert (exported.comparisons[0].other_tokens is None) == ("static" in variant)


def test_detections_are_part_of_the_graph(quick, tmp_path):
    model = small_model()
    exported = export(model, tmp_path / "model.onnx", detections=9, attention="grid")
    assert max(comparison.within for comparison in exported.comparisons) < 1e-4
    found = Detector.from_exported(exported.path).predict(FITTING, threshold=0)
    equal(found, fitting_detector(model).predict(FITTING, threshold=0, top_k=9))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    inputs = {"images": np.zeros((1, 3, *SIZE), np.float32), "mask": np.zeros((1, *SIZE), bool)}
    sizes = [np.array([size]) for size in ((1, 1), (100, 200))]
    boxes = [np.asarray(session.run(["boxes"], {**inputs, "sizes": size})[0]) for size in sizes]
    np.testing.assert_allclose(boxes[1], boxes[0] * [200, 100, 200, 100], rtol=1e-5, atol=1e-4)


def test_half_is_float16_inside_and_float32_outside(quick, tmp_path):
    exported = export(small_model(), tmp_path / "half.onnx", half=True)
    model = onnx.load(exported.path)
    sizes: Counter[int] = Counter()
    for tensor in model.graph.initializer:
        sizes[tensor.data_type] += int(np.prod(tensor.dims))
    assert sizes[onnx.TensorProto.FLOAT16] > 99 * sizes[onnx.TensorProto.FLOAT]  # small tables of positions
    assert all(v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for v in model.graph.output)
    assert 1e-6 < max(comparison.within for comparison in exported.comparisons) < exported.bound


def test_the_plugin_is_tensorrts(quick, tmp_path, recwarn):
    exported = export(small_model(num_decoder_layers=2), tmp_path / "model.onnx", attention="plugin")
    assert not [str(warning.message) for warning in recwarn]
    assert max(comparison.within for comparison in exported.comparisons) < 1e-4  # by its definition, in ONNX Runtime
    model = onnx.shape_inference.infer_shapes(onnx.load(exported.path))
    nodes = [node for node in model.graph.node if node.op_type == "MultiscaleDeformableAttnPlugin_TRT"]
    assert len(nodes) == 3 and {node.domain for node in nodes} == {"trt.plugins"} and not model.functions
    types = {value.name: value.type.tensor_type for value in model.graph.value_info}
    for node in nodes:
        kinds = [types[name].elem_type if name in types else None for name in node.input]
        # Shape inference stops at nodes that it does not know.
        assert all(kind in (None, wanted) for kind, wanted in zip(kinds, [1, 6, 6, 1, 1], strict=True))
        assert {a.name: a.s for a in node.attribute} == {"plugin_version": b"1", "plugin_namespace": b""}
    assert [types[nodes[0].input[k]].elem_type for k in (1, 2)] == [6, 6]
    with pytest.raises(ExportError, match="which runs in TensorRT alone"):
        Detector.from_exported(exported.path)


def test_a_program_of_pytorch_loads_with_the_kernels_alone(tmp_path, run_python):
    model = small_model()
    exported = export(model, tmp_path / "model.pt2")
    assert max(comparison.within for comparison in exported.comparisons) < 1e-5
    program = torch.export.load(exported.path)
    calls = [node for node in program.graph.nodes if "fused_ms_deform_attn" in str(node.target)]
    assert len(calls) == 2 and {node.args[-1] for node in calls} == {"auto"}
    images, mask = torch.randn(3, 3, *SIZE), torch.zeros(3, *SIZE, dtype=torch.bool)
    mask[1, 50:] = True
    torch.save([images, mask], tmp_path / "inputs.pt")
    code = (
        "import sys, torch, dino_kernels\n"
        "program = torch.export.load(sys.argv[1]).module()\n"
        "torch.save(list(program(*torch.load(sys.argv[2]))), sys.argv[3])\n"
        "assert 'dino' not in sys.modules\n"
    )
    run_python(code, *(str(tmp_path / name) for name in ("model.pt2", "inputs.pt", "outputs.pt")))
    logits, boxes, _ = torch.load(tmp_path / "outputs.pt")
    with torch.no_grad():
        expected = model(images, mask)
    torch.testing.assert_close(logits, expected.logits[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes, expected.boxes_cxcywh[-1], rtol=0, atol=1e-6)
    content = exported.path.read_bytes()
    assert b"site-packages" not in content and b"decoder.py" not in content


def test_a_model_is_exported_by_pytorch_itself():
    model, shape = small_model(), (2, 3, 64, 96)
    inputs = torch.zeros(shape), torch.zeros(2, 64, 96, dtype=torch.bool)
    with torch.no_grad():
        outputs = torch.export.export(model, inputs, strict=False).module()(*inputs)
    assert outputs.logits.shape == (1, 2, 20, 3) and outputs.denoising is None


def test_openvino_runs_the_same_graph(quick, tmp_path):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = small_model()
    exported = export(model, tmp_path / "model.xml")
    assert max(comparison.within for comparison in exported.comparisons) < 1e-4
    assert b"site-packages" not in exported.path.read_bytes()
    found = Detector.from_exported(exported.path).predict(FITTING, threshold=0.05)
    equal(found, fitting_detector(model).predict(FITTING, threshold=0.05))


def test_a_file_that_differs_keeps_another_name(monkeypatch, tmp_path):
    def write(path, *_):
        path.write_bytes(b"a file")
        return "content"

    differing = Comparison(2, (64, 96), True, 2e-3, 1e-6, 0.1, 1e-4, 0, 0.0)
    monkeypatch.setattr(export_file, "trace", lambda *_, **__: None)
    monkeypatch.setattr(export_file, "write", write)
    monkeypatch.setattr(export_file, "engine_of", lambda *_: (None, "an engine"))
    monkeypatch.setattr(export_file, "compare", lambda *_: differing)
    with pytest.raises(
        ExportError, match=r"model\.failed\.onnx: its detections differ .* by 2\.0e-03, and the bound is 0\.001"
    ):
        export(small_model(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.failed.onnx"]
    monkeypatch.setattr(export_file, "compare", lambda *_: dataclasses.replace(differing, score=9e-4))
    assert "2, padded" in str(export(small_model(), tmp_path / "model.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    monkeypatch.setattr(export_file, "compare", lambda *_: dataclasses.replace(differing, score=float("nan")))
    with pytest.raises(ExportError, match="by inf"):
        export(small_model(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset must be at least 18"),
        ({"size": (32, 96)}, "size must be a height and a width of at least"),
        ({"detections": 61}, r"detections must be in 1\.\.60"),
        ({"attention": "gathered"}, "attention must be one of gather, grid, plugin, op, got 'gathered'"),
        ({"format": "torch"}, r"format torch must end with \.pt2"),
        ({"format": "coreml"}, "format must be one of onnx, openvino, torch, aoti"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(export_file, "trace", lambda *_, **__: pytest.fail("traced"))
    with pytest.raises(ValueError, match=message):
        export(small_model(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_data_without_a_split_or_for_another_engine_is_refused_before_the_export(free, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(export_file, "trace", lambda *_, **__: pytest.fail("traced"))
    model = ["export", "--checkpoint", str(free.parent / "run"), "--output", str(tmp_path / "model.onnx")]
    assert commands.main([*model, "--data", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert commands.main([*model, "--data", str(tmp_path), "--attention", "plugin"]) == 2
    assert "--data cannot evaluate a file that runs in TensorRT alone" in capsys.readouterr().err


def test_a_form_that_a_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"'op' cannot be part of a file of format openvino\. Use gather, grid"):
        form_of("op", "openvino")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(ExportError, match=r"not an ONNX file|not exported by dino"):
        Detector.from_exported(tmp_path / "model.onnx")
    (tmp_path / "model.pt2").write_bytes(b"no zip")
    with pytest.raises(ExportError, match=r"not a \.pt2 file"):
        Detector.from_exported(tmp_path / "model.pt2")
    with pytest.raises(FileNotFoundError):
        Detector.from_exported(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match=r"is an exported file\. Use Detector\.from_exported"):
        Detector.from_checkpoint(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="ends with"):
        Detector.from_exported(Image.__file__)
