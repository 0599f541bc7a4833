"""The kernels with autotuning: once per kind of call and machine, at the first call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from triton import Config
from triton.runtime.autotuner import Autotuner

from dino_kernels.ops.ms_deform_attn.triton_backward import ms_deform_attn_backward
from dino_kernels.ops.ms_deform_attn.triton_forward import ms_deform_attn_forward

# If 4 lanes load a row, as with 32 channels, a warp computes 8 queries, and BLOCK_Q is the queries of a program.
#
# For many queries, half a tile of 8 x 8 pixels or a whole one: its warps share the first-level cache of one
# multiprocessor (benchmarks/attention/locality.py), and synchronise only for the softmax's gradient.
MANY = [Config({"BLOCK_Q": 32}, num_warps=4), Config({"BLOCK_Q": 64}, num_warps=8)]
# For few queries, which leave multiprocessors idle, the queries of a warp or of half a warp.
FEW = [Config({"BLOCK_Q": 8}, num_warps=1), Config({"BLOCK_Q": 4}, num_warps=1)]
# A kind of call, besides the dtypes: independent of the sizes of images and batches.
KEY = ["M", "D", "POINTS", "COORDINATES"]
# "0": no tuning; only the first configuration of each kind of call is compiled.
SWITCH = "DINO_KERNELS_TRITON_TUNE"


class Tuned(Autotuner):
    """A kernel whose configuration is tuned at the first call of each kind.

    Tuning is impossible while a CUDA graph is captured. A new kind of call then launches the first configuration, which
    the graph keeps; the next call outside a capture tunes.
    """

    def __init__(self, kernel: Any, configs: Sequence[Config], pre_hook: Callable[..., None] | None = None) -> None:
        super().__init__(kernel, kernel.arg_names, list(configs), KEY, None, None, pre_hook, cache_results=True)
        self.configs_timings = {}
        self._provisional: list[Any] = []

    def run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().run(*args, **kwargs)
        finally:
            while self._provisional:
                del self.cache[self._provisional.pop()]

    def check_disk_cache(self, tuning_key: Any, configs: list[Config], bench_fn: Callable[[], None]) -> bool:
        """Choose a configuration for a new kind of call; called by Triton. Return whether nothing was measured."""
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if not capturing and os.environ.get(SWITCH) != "0":
            return super().check_disk_cache(tuning_key, configs, bench_fn)
        self.cache[tuning_key] = configs[0]
        if capturing:
            self._provisional.append(tuning_key)
        return True


def _clear_sums(arguments: dict[str, Any], reset_only: bool = False) -> None:
    """Clear the sums, to which every measurement adds."""
    if arguments["sums"] is not None:
        arguments["sums"].zero_()


forward_many = Tuned(ms_deform_attn_forward, MANY)
forward_few = Tuned(ms_deform_attn_forward, FEW)
backward_many = Tuned(ms_deform_attn_backward, MANY, _clear_sums)
backward_few = Tuned(ms_deform_attn_backward, FEW, _clear_sums)
