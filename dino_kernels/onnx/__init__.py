"""Deformable attention of this package inside ONNX files, run by its CPU kernels in ONNX Runtime.

>>> program = torch.onnx.export(model, inputs, dynamo=True, custom_translation_table=dino_kernels.onnx.translations())
>>> program.save("model.onnx")
>>> options = onnxruntime.SessionOptions()
>>> dino_kernels.onnx.register(options)
>>> session = onnxruntime.InferenceSession("model.onnx", options)

Nothing is imported from onnx, onnxscript or onnxruntime unless a function is called that needs it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from dino_kernels.onnx.translation import DOMAIN, translations

__all__ = ["DOMAIN", "library_path", "register", "translations", "why_missing"]

_PATH = Path(__file__).parents[1] / "_onnx.so"


def library_path() -> Path:
    """Return the path of the custom-op library, for programs that load it themselves; they need no PyTorch.

    Raises:
        RuntimeError: the library is missing or does not load.
    """
    if reason := why_missing():
        raise RuntimeError(f"the custom ops for ONNX Runtime cannot be used: {reason}.")
    return _PATH


def register(
    session_options: Any,  # onnxruntime.SessionOptions
) -> None:
    """Make the ops `dino_kernels::FusedMSDeformAttn` and `::MSDeformAttn` known to sessions with these options.

    They run on a CPU, on the session's threads. Options may be used for any number of sessions; registering them again
    changes nothing.

    Raises:
        RuntimeError: the library is missing, or ONNX Runtime is older than 1.17.
    """
    session_options.register_custom_ops_library(str(library_path()))


def why_missing() -> str | None:
    """Return why the library cannot be loaded, or None."""
    advice = "build it with 'pip install -e .' (-v shows the compiler's output)"
    if not _PATH.is_file():
        return f"{_PATH} is missing; {advice}"
    try:
        ctypes.CDLL(str(_PATH))
    except OSError as error:
        return f"{_PATH.name} did not load ({error}); {advice}"
    return None
