"""The original op's names, for code that uses Deformable-DETR's compiled `MultiScaleDeformableAttention`.

An unmodified checkout of Deformable-DETR, DINO or Mask2Former runs after two lines at the top of its main script:

>>> from dino_kernels.integrations import original
>>> module = original.install()
>>> import MultiScaleDeformableAttention as MSDA

Code that can be edited imports the function instead:

>>> from dino_kernels.integrations.original import MSDeformAttnFunction

`im2col_step` is accepted everywhere and ignored: any batch size works, and nothing synchronises with a GPU.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch
from torch import Tensor

from dino_kernels.ops._attention import LevelSizes
from dino_kernels.ops.ms_deform_attn import backends, ms_deform_attn, prepare

MODULE_NAME = "MultiScaleDeformableAttention"


def ms_deform_attn_forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: LevelSizes,  # [L, 2] (H, W)
    level_start_index: Tensor | None,  # [L]
    sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
    attention_weights: Tensor,  # [B, Q, M, L, P]
    im2col_step: int = 64,
) -> Tensor:
    """Return the op's result, [B, Q, M * D]; the signature is that of the compiled module."""
    return ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: LevelSizes,  # [L, 2] (H, W)
    level_start_index: Tensor | None,  # [L]
    sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
    attention_weights: Tensor,  # [B, Q, M, L, P]
    grad_output: Tensor,  # [B, Q, M * D]
    im2col_step: int = 64,
) -> list[Tensor]:
    """Return the gradients of value, sampling_locations and attention_weights, as the compiled module does."""
    inputs = (value, sampling_locations, attention_weights)
    arguments = prepare(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    backend = backends.resolve("auto", arguments)
    if backend == "reference":
        # Autograd differentiates the reference, which has no backward.
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            output = ms_deform_attn(leaves[0], spatial_shapes, level_start_index, *leaves[1:], backend=backend)
            return list(torch.autograd.grad(output, leaves, grad_output))
    grads = torch.ops.dino_kernels.ms_deform_attn_backward(grad_output, *arguments, [True, True, True], backend)
    return [grad.reshape(tensor.shape).to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)]


class MSDeformAttnFunction:
    """`MSDeformAttnFunction.apply(...)` like the original's autograd function, with the gradient of this op."""

    @staticmethod
    def apply(
        value: Tensor,  # [B, S, M, D]
        value_spatial_shapes: LevelSizes,  # [L, 2] (H, W)
        value_level_start_index: Tensor | None,  # [L]
        sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
        attention_weights: Tensor,  # [B, Q, M, L, P]
        im2col_step: int = 64,
    ) -> Tensor:
        """Return the op's result, [B, Q, M * D], differentiable."""
        return ms_deform_attn(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )


def ms_deform_attn_core_pytorch(
    value: Tensor,  # [B, S, M, D]
    value_spatial_shapes: LevelSizes,  # [L, 2] (H, W)
    sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
    attention_weights: Tensor,  # [B, Q, M, L, P]
) -> Tensor:
    """Return the result of the original's plain-PyTorch function, computed by the fastest backend."""
    return ms_deform_attn(value, value_spatial_shapes, None, sampling_locations, attention_weights)


def install(name: str = MODULE_NAME, *, replace: bool = False) -> ModuleType:
    """Make `import MultiScaleDeformableAttention` import this package's op.

    Call it before importing the model's code. Calling it again changes nothing.

    Args:
        name: the module to provide. GroundingDINO imports the same two functions from "groundingdino._C".
        replace: replace an already imported module of that name. Code with a reference to that module keeps it.

    Returns:
        The module now in `sys.modules`.

    Raises:
        RuntimeError: another module of that name is already imported, and `replace` is False.
    """
    present = sys.modules.get(name)
    if present is not None:
        if getattr(present, "__dino_kernels__", False):
            return present
        if not replace:
            where = getattr(present, "__file__", None) or "no file"
            raise RuntimeError(
                f"install: another module named {name!r} is already imported ({where}). Call install() before "
                "the model's code is imported, or pass replace=True."
            )
    module = ModuleType(name, f"Provided by {__name__}.install().")
    module.__dict__.update(
        __dino_kernels__=True,
        ms_deform_attn_forward=ms_deform_attn_forward,
        ms_deform_attn_backward=ms_deform_attn_backward,
    )
    sys.modules[name] = module
    return module
