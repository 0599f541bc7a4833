"""The functions that `mmcv.ops.MultiScaleDeformableAttention` calls.

Code that uses mmcv (MMDetection, MMDetection3D, BEVFormer) runs on these kernels after one line:

>>> from dino_kernels.integrations import mmcv
>>> mmcv.install()  # doctest: +SKIP

`mmcv.ops.MultiScaleDeformableAttention` keeps its forward (batch_first, identity, dropout, query_pos, key_padding_mask
with True = padding, value_proj_ratio) and calls the op below, on CPU and GPU.

The two names can also be imported from here without mmcv; their signatures are mmcv's.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from dino_kernels.integrations.original import MSDeformAttnFunction, ms_deform_attn_core_pytorch

_MODULE = "mmcv.ops.multi_scale_deform_attn"
_SAVED = "_dino_kernels_replaced"


class MultiScaleDeformableAttnFunction(MSDeformAttnFunction):
    """`.apply(value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights,
    im2col_step)`, as mmcv's autograd function. Sampling locations stay in float32 if value is 16-bit."""


multi_scale_deformable_attn_pytorch = ms_deform_attn_core_pytorch

_REPLACEMENTS = {
    "MultiScaleDeformableAttnFunction": MultiScaleDeformableAttnFunction,
    "multi_scale_deformable_attn_pytorch": multi_scale_deformable_attn_pytorch,
}


def install() -> list[str]:
    """Replace mmcv's functions, for the whole process. Calling it again changes nothing.

    Call it first: code that copied a name (`from mmcv.ops.multi_scale_deform_attn import ...`) keeps its copy. mmcv's
    module looks the names up at every call.

    Returns:
        The replaced names, as "module.name".

    Raises:
        ImportError: mmcv.ops cannot be imported; mmcv-lite has no compiled ops.
    """
    module = _mmcv_module()
    saved = module.__dict__.setdefault(_SAVED, {})
    for name, replacement in _REPLACEMENTS.items():
        saved.setdefault(name, getattr(module, name))
        setattr(module, name, replacement)
    return [f"{_MODULE}.{name}" for name in _REPLACEMENTS]


def uninstall() -> None:
    """Restore mmcv's functions."""
    module = _mmcv_module()
    for name, original in module.__dict__.pop(_SAVED, {}).items():
        setattr(module, name, original)


def _mmcv_module() -> ModuleType:
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        raise ImportError(
            f"install: {_MODULE} cannot be imported ({error}). Install mmcv with its compiled ops (mmcv-lite has "
            "none), or import the two names from dino_kernels.integrations.mmcv instead."
        ) from error
