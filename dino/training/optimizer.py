"""AdamW and its step schedule, as in the paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dino.common.distributed import full_tensor
from dino.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW for the parameters that require gradients, norms and biases with weight decay too.

    With `config.static`, rates of parameters on a GPU are tensors there, which captured graphs read.
    """
    backbone, offsets, rest = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            has_own_rate = config.offsets_lr is not None and "sampling_offsets" in name
            (backbone if "backbone" in name else offsets if has_own_rate else rest).append(parameter)
    groups = []
    for parameters, rate in ((rest, config.lr), (backbone, config.backbone_lr), (offsets, config.offsets_lr)):
        if rate is None:
            continue
        captured = config.static and any(parameter.is_cuda for parameter in parameters)
        lr = torch.tensor(rate, dtype=torch.float32, device=parameters[0].device) if captured else rate
        groups.append({"params": parameters, "lr": lr, "initial_lr": rate})
    # Fused: a step that is not finite is dropped on the device, see `Precision.step`.
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True, capturable=config.static)


def learning_rate_factor(epoch: int, step: int, drops: Sequence[int], warmup_steps: int = 0) -> float:
    """Return the factor of the base rates in a step: 0.1 for each past epoch of `drops`, times the linear warm-up.

    Args:
        epoch: epochs completed.
        step: optimisation steps completed.
        drops: epochs after which the rates drop.
        warmup_steps: steps until the full rate.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmup * 0.1 ** sum(epoch >= drop for drop in drops)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of each group to its base rate times `factor`."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def clip_gradients(model: nn.Module, largest_norm: float) -> Tensor:
    """Scale all gradients to a total norm of at most `largest_norm`; return the norm before, a scalar."""
    return full_tensor(nn.utils.clip_grad_norm_(model.parameters(), largest_norm))
