"""Triton backend: the kernels in triton_forward.py and triton_backward.py, which `fused_ms_deform_attn` runs too."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dino_kernels.ops._core import triton_support
from dino_kernels.ops._core.arguments import MSDeformAttnArguments as Arguments
from dino_kernels.ops._core.dtypes import compute_dtype
from dino_kernels.ops._core.fixed_point import scale_of, sum_bound
from dino_kernels.ops._core.layout import contiguous, heads, rows

# A warp computes 8 queries. Fewer items do not fill the 132 multiprocessors of an H100, each of which has room for 16
# to 32 warps at 100 to 64 registers per thread.
FEW_ITEMS = 2**15


def kernels() -> ModuleType:
    """Import and return the module of the kernels; tests/triton/interpreter.py replaces this function."""
    from dino_kernels.ops.ms_deform_attn import triton_tuned

    return triton_tuned


class Call(NamedTuple):
    """The arguments of either op."""

    value: Tensor  # [B, S, M, D]
    spatial_shapes: Tensor | None  # [L, 2]
    level_sizes: list[int]  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None  # [L]
    num_points: list[int]  # [L]
    reference_points: Tensor | None  # [B, Q, L, 2 or 4]
    positions: Tensor  # [B, Q, M, K, 2]: sampling locations, or offsets around reference points
    weights: Tensor  # [B, Q, M, K]: attention weights, or logits with reference points
    value_mask: Tensor | None  # [B, S]

    def dense(self) -> Call:
        """Return the call with the strides that kernels take."""
        return self._replace(value=heads(self.value), positions=rows(self.positions), weights=rows(self.weights))


def unsupported(arguments: Any) -> str | None:
    """Return why the Triton kernels cannot run this call, or None."""
    return triton_support.unsupported("value", arguments.value) or unsupported_number(arguments.value)


def unsupported_number(value: Tensor) -> str | None:
    """Return why the Triton kernels cannot compute in this dtype, or None."""
    if value.dtype == torch.float64 and torch.are_deterministic_algorithms_enabled():
        return "its deterministic backward has the precision of float32, value is float64"
    return None


def forward(arguments: Arguments) -> Tensor:
    """Return the weighted sum of samples, [B, Q, M * D]."""
    return run_forward(_call(arguments))


def backward(
    grad_output: Tensor,  # [B, Q, M * D]
    arguments: Arguments,
    requested: list[bool],  # [3]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, sampling_locations and attention_weights; empty if not requested."""
    bound = sum_bound(grad_output, arguments.attention_weights) if requested[0] else None
    grads = run_backward(grad_output, _call(arguments), [requested[0], False, *requested[1:]], bound)
    return grads[0], grads[2], grads[3]


def _call(arguments: Arguments) -> Call:
    return Call(*arguments[:5], None, *arguments[5:], None)


def run_forward(call: Call) -> Tensor:
    """Return the weighted sum of samples of either op, [B, Q, M * D]."""
    call = call.dense()
    value, queries = call.value, call.positions.shape[1]
    batch, _, heads_, channels = value.shape
    launch = _launch("forward", call)
    if launch is None:
        return value.new_zeros(batch, queries, heads_ * channels)
    output = value.new_empty(batch, queries, heads_ * channels)
    with triton_support.on_device_of(value):
        launch(*_tensors(call), output, *_sizes(call), **_constants(call), PACKED=_packed(value))
    return output


def run_backward(
    grad_output: Tensor,  # [B, Q, M * D]
    call: Call,
    requested: list[bool],  # [4]: value, reference points, positions, weights
    bound: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the requested gradients of either op; empty tensors for the others.

    Args:
        bound: result of `sum_bound`.

    Returns:
        Gradients of value, reference points by head [B, Q, M, L, 2 or 4], positions and weights.
    """
    of_value, of_references, of_positions, of_weights = requested
    value, positions, weights, reference_points = call.value, call.positions, call.weights, call.reference_points
    compute = compute_dtype(value.dtype)
    launch = _launch("backward", call)
    new = torch.zeros_like if launch is None else torch.empty_like
    grad_positions = new(positions, memory_format=torch.contiguous_format) if of_positions else None
    grad_weights = new(weights, memory_format=torch.contiguous_format) if of_weights else None
    # The softmax's gradient needs all of a head's samples, so the gradients of the weights are stored first.
    grad_attention = grad_weights
    if grad_weights is not None and reference_points is not None and weights.dtype != compute:
        grad_attention = torch.empty_like(grad_weights, dtype=compute)
    grad_references = None
    if of_references and reference_points is not None:
        of_heads = reference_points[:, :, None].expand(-1, -1, value.shape[2], -1, -1)
        grad_references = new(of_heads, memory_format=torch.contiguous_format)

    call, grad_output = call.dense(), rows(grad_output)
    sums = scale = grad_value = None
    if of_value:
        dtype = compute if bound is None else torch.int64
        sums = torch.zeros_like(call.value, dtype=dtype, memory_format=torch.contiguous_format)
        scale = None if bound is None else scale_of(bound, positions.shape[1] * sum(call.num_points))
    packed = _packed(call.value) and _packed(grad_output)
    if launch is not None:
        with triton_support.on_device_of(value):
            launch(
                grad_output,
                *_tensors(call),
                sums,
                scale,
                grad_positions,
                grad_attention,
                None if reference_points is None else grad_weights,
                grad_references,
                *_sizes(call, grad_output),
                **_constants(call),
                PACKED=packed,
            )
    if sums is not None:
        grad_value = _finished(sums, scale, value.dtype, packed)
    grads = grad_value, grad_references, grad_positions, grad_weights
    first, second, third, fourth = (value.new_empty(0) if grad is None else grad for grad in grads)
    return first, second, third, fourth


def _launch(direction: str, call: Call) -> Any:
    """Return the launcher of a program per head, image and tile of queries; None if there is nothing to compute."""
    batch, _, heads_, _ = call.value.shape
    queries = call.positions.shape[1]
    items = batch * queries * heads_
    if items == 0 or call.value.numel() == 0 or sum(call.num_points) == 0:
        return None
    kernel = getattr(kernels(), f"{direction}_{'few' if items < FEW_ITEMS else 'many'}")
    return kernel[lambda meta: (-(-queries // tile_size(meta["BLOCK_Q"], meta["LANES"])) * batch * heads_,)]


def tile_size(block: int, lanes: int) -> int:
    """Return the queries of a program: `block` if 4 lanes load a row. The kernels compute the same."""
    return max(block * 4 // lanes, 1)


def _tensors(call: Call) -> tuple[Any, ...]:
    shapes, mask = call.spatial_shapes, call.value_mask
    # Triton compiles a variant for each pattern of ones and multiples of 16 in a tuple; 32 n + 17 is neither.
    return (
        call.value,
        call.positions,
        call.weights,
        contiguous(call.reference_points),
        None if mask is None else mask.contiguous().view(torch.uint8),
        contiguous(shapes),
        contiguous(call.level_start_index),
        tuple(32 * size + 17 for size in call.level_sizes) if shapes is None else None,
    )


def _sizes(call: Call, *first: Tensor) -> tuple[int, ...]:
    strides = [stride for x in (*first, call.value, call.positions, call.weights) for stride in x.stride()[:2]]
    return call.positions.shape[1], call.value.shape[1], *strides


def _constants(call: Call) -> dict[str, Any]:
    from triton import language as tl
    from triton import next_power_of_2

    value, positions, reference_points, points = call.value, call.positions, call.reference_points, call.num_points
    channels = value.shape[3]
    padded_half = next_power_of_2((channels + 1) // 2)
    return {
        "M": value.shape[2],
        "D": channels,
        "K": sum(points),
        "POINTS": tuple(points),
        "COORDINATES": 0 if reference_points is None else reference_points.shape[3],
        "COMPUTE": tl.float64 if value.dtype == torch.float64 else tl.float32,
        "PAIRED": positions.element_size() < 8 and _even(positions, 2 * positions.element_size()),
        # As many lanes as for a row of value, so that the softmax is computed on the lanes that need it.
        "PADDED_K": max(next_power_of_2(sum(points)), padded_half),
        "PADDED_HALF": padded_half,
        # A lane loads 16 bytes.
        "LANES": min(32, max(1, padded_half // (2 if value.dtype == torch.float64 else 4))),
        # The default up to Triton 3.9 but not from 3.10 on. Multiply-adds are half of the arithmetic.
        "enable_fp_fusion": True,
    }


def _packed(rows_of_channels: Tensor) -> bool:
    """Return whether two channels can be loaded as one number."""
    return rows_of_channels.element_size() == 2 and rows_of_channels.shape[-1] % 2 == 0 and _even(rows_of_channels, 4)


def _even(tensor: Tensor, alignment: int) -> bool:
    return tensor.data_ptr() % alignment == 0 and all(stride % 2 == 0 for stride in tensor.stride()[:2])


def _finished(sums: Tensor, scale: Tensor | None, dtype: torch.dtype, packed: bool) -> Tensor:
    """Return grad_value from the kernel's sums, in which the even channels come first if they are packed."""
    if scale is not None:
        sums = sums.double() / scale.double()
    if packed:
        halves = sums.unflatten(3, (2, -1)).transpose(3, 4)
        return torch.empty(halves.shape, dtype=dtype, device=sums.device).copy_(halves).flatten(3)
    return sums.to(dtype)
