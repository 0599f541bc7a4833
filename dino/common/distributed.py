"""Training on one process or many: who takes part, how the model is spread, and how it is put together again."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino.common.device import choose_device

# The first process scores a whole validation set while the others wait for its numbers.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started (or a group that exists already) for the length of the block."""
    inside_group = dist.is_available() and dist.is_initialized()
    launched = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local_rank if inside_group or launched else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not inside_group and not launched:
        yield Ranks(0, 1, chosen)
        return
    if not inside_group:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        if not inside_group:
            dist.destroy_process_group()


def _device(device: str, local_rank: int | None) -> torch.device:
    chosen = choose_device(None if device == "auto" else device)
    if chosen.type == "cuda" and chosen.index is not None and local_rank is not None:
        raise ValueError(f"device is {device!r}, one GPU for all processes of torchrun; use cuda, and each has its own")
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank or 0)
    return chosen


def spread(model: nn.Module, strategy: Literal["ddp", "fsdp2"], ranks: Ranks) -> nn.Module:
    """The module whose forward pass takes part in the run; `model` itself on one process.

    "fsdp2" shards `model` in place: each encoder and decoder layer and the backbone gather their parameters when it is
    their turn. The shared heads lie outside of them, because several layers use them.
    """
    if ranks.size == 1:
        return model
    if strategy == "ddp":
        # Frozen normalisation has no state to keep equal. PyTorch 2.13 renamed the option.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync: False}
        return DistributedDataParallel(
            model,
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            find_unused_parameters=False,  # every parameter gets a gradient in every step
            gradient_as_bucket_view=True,
            **options,
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # It warns of changes in place to what the model returns; there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for name in ("backbone", "encoder.layers", "decoder.layers"):
        part = model.get_submodule(name)
        for unit in part if isinstance(part, nn.ModuleList) else [part]:
            fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def device_name(device: torch.device) -> str:
    """A device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def gradient_sync(module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Around forward and backward: whether processes average gradients; not before the last batch of a step."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if wanted else module.no_sync()
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(wanted)  # pyright: ignore[reportCallIssue]
    return nullcontext()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded, as a view of it."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, as one; all processes must ask."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def whole_on_cpu(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole copies on the CPU of the first process; nothing on the others. All processes must ask."""
    collected = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if ranks.first:
            collected[name] = complete.to("cpu", copy=True)
    return collected


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor that may be sharded."""
    tensor.copy_(sharded_like(tensor, value))


def sharded_like(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole value on the device of `tensor`, and sharded as it is."""
    value = value.to(tensor.device)
    if not hasattr(tensor, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the same value: nothing to send.
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)  # pyright: ignore
