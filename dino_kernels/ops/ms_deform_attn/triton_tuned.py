"""The kernels with what is chosen by measuring: when a kind of call comes first, and never again on that machine."""

from __future__ import annotations

from typing import Any

from triton import Config, autotune

from dino_kernels.ops.ms_deform_attn.triton_backward import ms_deform_attn_backward
from dino_kernels.ops.ms_deform_attn.triton_forward import ms_deform_attn_forward

# One warp a program: with more, samples go from lane to lane through shared memory, with barriers: 56 in the forward
# pass of 32 queries and 4 warps, none in that of 8 queries and one warp (counted in code for sm_90).
#
# Of many queries, 8: lanes then load and add 16 bytes each; or 16: twice the loads in flight, and registers.
MANY = [Config({"BLOCK_Q": 8}, num_warps=1), Config({"BLOCK_Q": 16}, num_warps=1)]
# Of few, which leave multiprocessors idle, half as many a program: twice the programs.
FEW = [Config({"BLOCK_Q": 8}, num_warps=1), Config({"BLOCK_Q": 4}, num_warps=1)]
# Besides the dtypes: sizes of images and batches do not matter.
KEY = ["M", "D", "POINTS", "COORDINATES"]


def _clear_sums(arguments: dict[str, Any], reset_only: bool = False) -> None:
    """Measuring adds to them many times."""
    if arguments["sums"] is not None:
        arguments["sums"].zero_()


forward_many = autotune(MANY, KEY, cache_results=True)(ms_deform_attn_forward)
forward_few = autotune(FEW, KEY, cache_results=True)(ms_deform_attn_forward)
backward_many = autotune(MANY, KEY, pre_hook=_clear_sums, cache_results=True)(ms_deform_attn_backward)
backward_few = autotune(FEW, KEY, pre_hook=_clear_sums, cache_results=True)(ms_deform_attn_backward)
