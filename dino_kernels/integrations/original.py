"""The original op's names, for code that uses Deformable-DETR's compiled `MultiScaleDeformableAttention`.

A script of an unmodified checkout of Deformable-DETR, DINO or Mask2Former runs with its own arguments by

    python -m dino_kernels.integrations.original main.py ARGUMENTS

or after two lines at its top:

>>> from dino_kernels.integrations import original
>>> module = original.install()
>>> import MultiScaleDeformableAttention as MSDA

Code that can be edited imports the function instead:

>>> from dino_kernels.integrations.original import MSDeformAttnFunction

`im2col_step` is accepted everywhere and ignored: any batch size works, and nothing synchronises with a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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


def deformable_attention_core_func_v2(
    value: Tensor | Sequence[Tensor],  # [B, S, M, D], or of each level [B, M, D, H * W]
    value_spatial_shapes: LevelSizes,  # [L, 2] (H, W)
    sampling_locations: Tensor,  # [B, Q, M, K, 2]
    attention_weights: Tensor,  # [B, Q, M, K]
    num_points_list: Sequence[int],  # [L], sum is K
    method: str = "default",
) -> Tensor:
    """Return the result of the function of this name in RT-DETRv2 and D-FINE, [B, Q, M * D].

    Args:
        value: RT-DETRv2 passes one tensor, D-FINE one of each level.
        value_spatial_shapes, sampling_locations, attention_weights: as in `dino_kernels.ms_deform_attn`.
        num_points_list: points of each level.
        method: "default", bilinear sampling.

    Raises:
        ValueError: `method` is "discrete", which is another operation.
    """
    if method != "default":
        raise ValueError(
            f"deformable_attention_core_func_v2: method must be 'default' (bilinear sampling), got {method!r}. Keep "
            "the repository's function for it."
        )
    if not isinstance(value, Tensor):
        value = torch.cat(list(value), -1).permute(0, 3, 1, 2)
    shapes = value_spatial_shapes
    if not isinstance(shapes, Tensor):
        shapes = [(int(height), int(width)) for height, width in shapes]
    points = list(num_points_list)
    return ms_deform_attn(value, shapes, None, sampling_locations, attention_weights, num_points=points)


def install(name: str = MODULE_NAME, *, replace: bool = False) -> ModuleType:
    """Make `import MultiScaleDeformableAttention` import this package's op.

    Call it before importing the model's code. Calling it again changes nothing.

    Args:
        name: the module to provide. GroundingDINO imports the same two functions from "groundingdino._C".
        replace: replace an already imported module of that name. Code with a reference to that module keeps it.

    Returns:
        The module now in `sys.modules`.

    Raises:
        TypeError: `name` is no name of a module.
        RuntimeError: another module of that name is already imported, and `replace` is False.
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise TypeError(f"install: name must be the name of a module, such as {MODULE_NAME!r}, got {name!r}")
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


if __name__ == "__main__":
    # This file is imported under its own name, too, because the checkout may import it.
    from dino_kernels.integrations.original import install as install_once
    from dino_kernels.integrations.run_script import run_script

    install_once()
    install_once("groundingdino._C")
    run_script(sys.argv[1:])
