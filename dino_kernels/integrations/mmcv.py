"""The functions behind `mmcv.ops.MultiScaleDeformableAttention`.

Code that uses mmcv (MMDetection, MMDetection3D, BEVFormer) runs on these kernels after one line:

>>> from dino_kernels.integrations import mmcv
>>> mmcv.install()  # doctest: +SKIP

`mmcv.ops.MultiScaleDeformableAttention` then keeps its own forward (batch_first, identity, dropout, query_pos,
key_padding_mask with True = padding, value_proj_ratio) and calls the op below, on CPU and GPU alike.

The two names can also be imported from here, with mmcv absent: the signatures are mmcv's.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from dino_kernels.integrations.original import MSDeformAttnFunction, ms_deform_attn_core_pytorch

_MODULE = "mmcv.ops.multi_scale_deform_attn"
_SAVED = "_dino_kernels_replaced"


class MultiScaleDeformableAttnFunction(MSDeformAttnFunction):
    """`.apply(value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights,
    im2col_step)`, as mmcv's autograd function. Sampling locations stay in float32 where value is 16-bit."""


multi_scale_deformable_attn_pytorch = ms_deform_attn_core_pytorch

_REPLACEMENTS = {
    "MultiScaleDeformableAttnFunction": MultiScaleDeformableAttnFunction,
    "multi_scale_deformable_attn_pytorch": multi_scale_deformable_attn_pytorch,
}


def install() -> list[str]:
    """Point mmcv's names at this package, for the whole process. Calling it again changes nothing.

    Code that copied a name earlier (`from mmcv.ops.multi_scale_deform_attn import ...`) keeps its copy, so call
    this first. mmcv's own module looks the names up at every call.

    Returns:
        The names that now lead here, as "module.name".

    Raises:
        ImportError: mmcv.ops is not importable; mmcv-lite has no compiled ops.
    """
    module = _mmcv_module()
    saved = module.__dict__.setdefault(_SAVED, {})
    for name, replacement in _REPLACEMENTS.items():
        saved.setdefault(name, getattr(module, name))
        setattr(module, name, replacement)
    return [f"{_MODULE}.{name}" for name in _REPLACEMENTS]


def uninstall() -> None:
    """Give mmcv its own functions back."""
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
