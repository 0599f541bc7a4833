"""Run on one process or many: who takes part, and how the model is replicated or sharded.

The only module that calls torch.distributed. Functions marked collective must be called by all processes.
"""

from __future__ import annotations

import inspect
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino.common.device import choose_device
from dino.common.parent import end_with_parent

# The first process scores the whole validation set while the others wait for its metrics.
TIMEOUT = timedelta(hours=1)
# A group must not be freed by DistributedDataParallel: that holds Python's lock while it waits for the group's thread,
# which may need the lock to free a tensor (PyTorch 2.13: the process hangs). Python's own reference is
# dropped without the lock.
_ended: list[Any] = []


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and the place of this one among them. Its methods are collective."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, computed in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in order of rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return once all processes have called this."""
        if self.size > 1:
            dist.barrier()

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Call a function on the first process; return its result, or raise its exception, on all of them."""
        if self.size == 1:
            return function()
        outcome: list[Any] = [None]
        if self.first:
            try:
                outcome = [function()]
            except Exception as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]


def current_ranks(device: torch.device | str) -> Ranks:
    """Return the processes of the existing process group; without one, this process alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), torch.device(device))
    return Ranks(0, 1, torch.device(device))


class LostProcessError(RuntimeError):
    """The processes of a run cannot reach one another: most often one of them has ended."""


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or an existing group, for the length of the block.

    When torchrun is killed, this process gets SIGTERM.

    Raises:
        LostProcessError: the processes cannot reach one another.
    """
    inside_group = dist.is_available() and dist.is_initialized()
    launched = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local_rank if inside_group or launched else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if launched and not inside_group:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent(signal.SIGTERM)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield current_ranks(chosen)
    except RuntimeError as error:
        if not (launched or inside_group) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise LostProcessError(
            "lost another process of the run. If it failed, its error is above; if it was killed, memory may be short. "
            f"A training continues with --resume ({str(error).splitlines()[0][:120]})"
        ) from error
    finally:
        if launched and not inside_group:
            _ended.append(dist.group.WORLD)
            dist.destroy_process_group()


def _device(device: str, local_rank: int | None) -> torch.device:
    chosen = choose_device(None if device == "auto" else device)
    if chosen.type == "cuda" and chosen.index is not None and local_rank is not None:
        raise ValueError(
            f"device is {device!r}, one GPU for all processes of torchrun. Use cuda: each gets its own GPU"
        )
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank or 0)
    return chosen


def replicate_or_shard(model: nn.Module, strategy: Literal["ddp", "fsdp2"], ranks: Ranks) -> nn.Module:
    """Return the module to call in training; `model` itself on one process.

    "fsdp2" shards `model` in place: the backbone and each encoder and decoder layer gather their parameters when they
    run. The heads shared by several layers are sharded with the model as a whole.
    """
    if ranks.size == 1:
        return model
    if strategy == "ddp":
        # Frozen normalisation has no state to synchronise. PyTorch 2.13 renamed the option.
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

    # The warning concerns in-place changes to the model's outputs, and there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for name in ("backbone", "encoder.layers", "decoder.layers"):
        part = model.get_submodule(name)
        for unit in part if isinstance(part, nn.ModuleList) else [part]:
            fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def device_name(device: torch.device) -> str:
    """Return the name of a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def gradient_sync(module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
    """Return the context of a forward and backward pass; processes average gradients if `enabled`."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if enabled else module.no_sync()
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(enabled)  # pyright: ignore[reportCallIssue]
    return nullcontext()


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor as a view; all of it if it is not sharded."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor without sharding. Collective."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def full_model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the full weights on the CPU of the first process, empty elsewhere. Collective.

    On a CPU these are the model's own tensors, not copies.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(model, options=_options())  # pyright: ignore[reportReturnType]


def load_full_model_state(model: nn.Module, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load full weights, equal on all processes, into a model that may be sharded. Collective."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(model, dict(tensors), options=_options(strict=strict))


def full_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the full state of an optimiser as `<parameter>.<quantity>`, where `full_model_state` does. Collective."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    if not optimizer.state:  # there was no step yet; PyTorch would take one, and count it
        return {}
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_options())
    return {
        f"{name}.{quantity}": value
        for name, quantities in state.get("state", {}).items()
        for quantity, value in quantities.items()
    }


def load_full_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Load what `full_optimizer_state` returned; the options of the groups are kept. Collective.

    Raises:
        KeyError: a parameter has no state.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    if not tensors:
        return
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer)
    for name, quantities in state["state"].items():
        state["state"][name] = {quantity: tensors[f"{name}.{quantity}"] for quantity in quantities}
    set_optimizer_state_dict(model, optimizer, state, options=_options())


def _options(*, strict: bool = True) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, strict=strict)
