"""The custom-op library: how it is registered, what it needs, and what is said where it cannot be used."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

import dino_kernels.onnx
from dino_kernels.ops._core import libraries

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    dino_kernels.onnx.why_missing() is not None, reason=str(dino_kernels.onnx.why_missing())
)
VERSION = 17  # of the C API, as in csrc/onnx/api.h


GetApi, GetVersionString = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32), ctypes.CFUNCTYPE(ctypes.c_size_t)


class ApiBase(ctypes.Structure):
    """The first structure of ONNX Runtime's C API; every function is found from here. Addresses, 0 for null."""

    _fields_ = (("GetApi", GetApi), ("GetVersionString", GetVersionString))


@pytest.fixture
def api_base() -> ApiBase:
    """That of the installed ONNX Runtime, in a copy of its library that Python does not use otherwise."""
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("this build of ONNX Runtime has no library of its own")
    library = ctypes.CDLL(str(found[0]))
    library.OrtGetApiBase.restype = ctypes.POINTER(ApiBase)
    return library.OrtGetApiBase().contents


def test_the_installed_onnx_runtime_serves_the_version_of_the_api(api_base):
    assert ctypes.string_at(api_base.GetVersionString()).decode() == onnxruntime.__version__
    assert api_base.GetApi(VERSION)
    text = (Path(__file__).parents[2] / "csrc/onnx/api.h").read_text()
    assert f"kVersion = {VERSION};" in text


def test_an_older_onnx_runtime_is_turned_down_with_both_versions(api_base):
    asked = []

    def get_api(version: int) -> int:
        asked.append(version)
        return 0 if version > 16 else api_base.GetApi(version)

    text = ctypes.create_string_buffer(b"1.16.3")
    old = ApiBase(GetApi(get_api), GetVersionString(lambda: ctypes.addressof(text)))
    register = ctypes.CDLL(str(dino_kernels.onnx.library_path())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    status = register(None, ctypes.byref(old))
    table = ctypes.cast(api_base.GetApi(1), ctypes.POINTER(ctypes.c_void_p))
    message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(table[2])(status)
    assert message == b"dino_kernels needs ONNX Runtime 1.17 or newer, this is 1.16.3"
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(table[93])(status)
    assert asked == [VERSION, 1]


def test_options_may_be_registered_again():
    options = onnxruntime.SessionOptions()
    for _ in range(3):
        dino_kernels.onnx.register(options)
    assert options.get_session_config_entry("dino_kernels.registered") == "1"


def test_the_library_needs_neither_torch_nor_this_package():
    path = str(dino_kernels.onnx.library_path())
    program = (
        "import sys, onnxruntime; options = onnxruntime.SessionOptions(); "
        f"options.register_custom_ops_library({path!r}); "
        "assert not {'torch', 'dino_kernels'} & set(sys.modules); print('registered')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "registered\n", done.stderr


@pytest.mark.skipif(libraries.C is None, reason=f"no CPU library: {libraries.CPU_MISSING}")
def test_the_library_uses_the_instruction_set_of_the_cpu_backend():
    assert libraries.C is not None
    capability = ctypes.CDLL(str(dino_kernels.onnx.library_path())).dino_kernels_cpu_capability
    capability.restype = ctypes.c_char_p
    assert capability().decode() == libraries.C.cpu_capability()


@pytest.mark.parametrize(("content", "reason"), [(None, "is missing"), (b"not a library", "did not load")])
def test_a_library_that_cannot_be_used_is_named_with_what_to_do(monkeypatch, tmp_path, content, reason):
    path = tmp_path / "_onnx.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(dino_kernels.onnx, "_PATH", path)
    with pytest.raises(RuntimeError, match=f"_onnx.so {reason}.*pip install -e"):
        dino_kernels.onnx.register(onnxruntime.SessionOptions())
