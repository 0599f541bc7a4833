"""Forms of deformable attention in an exported graph. A form is one function with the arguments of the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import dino_kernels.onnx
from dino.common.text import suggestion
from dino.export.attention import gather, grid, plugin
from dino.export.attention.samples import fused
from dino.model.config import ModelConfig
from dino_kernels import fused_ms_deform_attn
from dino_kernels.nn import MSDeformAttn

Attend = Callable[..., Tensor]
"""Arguments and result of `dino_kernels.fused_ms_deform_attn`; `level_start_index` is None, shapes are a list."""


def _nothing() -> dict[Any, Any]:
    return {}


def _unchanged(model: Any, config: ModelConfig) -> Any:
    return model


def _no_options(options: Any) -> None:
    pass


@dataclass(frozen=True)
class Form:
    """How deformable attention appears in a graph."""

    attend: Attend
    """What is traced."""
    formats: tuple[str, ...]
    """Formats of files that it can be part of; the first form in `FORMS` with a format is that format's default."""
    translations: Callable[[], dict[Any, Any]] = _nothing
    """Returns the ONNX functions of its own torch ops, for `torch.onnx.export(custom_translation_table=...)`."""
    runnable: Callable[[Any, ModelConfig], Any] = _unchanged
    """Returns an ONNX model with the same outputs that ONNX Runtime can run, if it cannot run the file itself."""
    prepare_session: Callable[[Any], None] = _no_options
    """Changes the `SessionOptions` with which ONNX Runtime runs a file, for example to load a library of ops."""
    runs_in: str = ""
    """What alone runs the file; "" if ONNX Runtime does."""


FORMS: dict[str, Form] = {
    # Basic ONNX ops. TensorRT runs GridSample of several levels wrongly, without an error (NVIDIA/TensorRT 4813).
    "gather": Form(fused(gather.attend), ("onnx", "openvino", "torch", "aoti")),
    "grid": Form(fused(grid.attend), ("onnx", "openvino", "torch", "aoti")),
    "plugin": Form(
        fused(plugin.attend),
        ("onnx",),
        translations=plugin.translations,
        runnable=plugin.runnable,
        runs_in="TensorRT",
    ),
    # The op of dino_kernels as one node: the kernel is chosen where the file runs.
    # In ONNX a node of the domain dino_kernels, run by the library of custom ops.
    "op": Form(
        fused_ms_deform_attn,
        ("torch", "aoti", "onnx"),
        translations=dino_kernels.onnx.translations,
        prepare_session=dino_kernels.onnx.register,
    ),
}
DEFAULT = {"onnx": "gather", "openvino": "gather", "torch": "op", "aoti": "op"}
"""The form of each format."""


def form_of(name: str | None, format: str) -> tuple[str, Form]:
    """Return a form and its name; for None the default of the format.

    Raises:
        ValueError: the form is unknown, or a file of this format cannot hold it.
    """
    name = name or DEFAULT[format]
    if name not in FORMS:
        raise ValueError(f"attention must be one of {', '.join(FORMS)}, got {name!r}.{suggestion(name, FORMS)}")
    if format not in FORMS[name].formats:
        allowed = ", ".join(key for key, form in FORMS.items() if format in form.formats)
        raise ValueError(f"attention {name!r} cannot be part of a file of format {format}. Use {allowed}.")
    return name, FORMS[name]


class _Attention(nn.Module):
    """`MSDeformAttn` with its deformable attention in a form."""

    def __init__(self, module: MSDeformAttn, attend: Attend) -> None:
        super().__init__()
        self.sampling_offsets, self.attention_weights = module.sampling_offsets, module.attention_weights
        self.value_proj, self.output_proj = module.value_proj, module.output_proj
        self.heads, self.points = module.n_heads, [int(module.n_points)] * module.n_levels  # type: ignore[arg-type]
        self.attend = attend

    def forward(
        self,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, L, 2] or [B, Q, L, 4]
        tokens: Tensor,  # [B, S, C]
        shapes: tuple[tuple[int, int], ...],  # L (H, W)
        starts: None,
        padding: Tensor,  # [B, S] bool
    ) -> Tensor:
        value = self.value_proj(tokens).unflatten(-1, (self.heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (self.heads, -1, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.heads, -1))
        output = self.attend(value, shapes, starts, reference_points, offsets, logits, padding, num_points=self.points)
        return self.output_proj(output.to(tokens.dtype))


def replace_attention(model: nn.Module, form: Form) -> None:
    """Replace each deformable attention of a model, which is changed, by the form."""
    if form.attend is fused_ms_deform_attn:
        return
    for name, module in list(model.named_modules()):
        if isinstance(module, MSDeformAttn):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Attention(module, form.attend))
