"""Optimizer, decay groups and schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from luthier.core.errors import MissingExtra
from luthier.train.settings import ScheduleSettings, TrainSettings

NO_DECAY = ("norm", "bias", "ln_", "layernorm", "layer_norm")


def decays(name: str, weight: nn.Parameter) -> bool:
    """Weight decay spares biases, norms and everything that is not a matrix."""
    return weight.dim() > 1 and not any(part in name.lower() for part in NO_DECAY)


def groups(
    weights: Mapping[str, nn.Parameter], lr: float, decay: float, multipliers: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """One group for each (decay, rate multiplier) that occurs, in a stable order."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        times = (multipliers or {}).get(name, 1.0)
        found.setdefault((decay if decays(name, weight) else 0.0, times), []).append(weight)
    return [
        {"params": members, "weight_decay": wd, "lr": lr * times, "base_lr": lr * times}
        for (wd, times), members in found.items()
    ]


def build(
    settings: TrainSettings,
    weights: Mapping[str, nn.Parameter],
    lr: float,
    multipliers: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over trained weights only."""
    made = groups(weights, lr, settings.weight_decay, multipliers)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(made, lr=lr, betas=settings.betas, foreach=len(weights) > 8)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(made, lr=lr, momentum=settings.betas[0])
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(made, lr=lr)
    try:
        import bitsandbytes
    except ImportError:
        raise MissingExtra("the optimizer paged_adamw_8bit", "quant") from None
    made_8bit: torch.optim.Optimizer = bitsandbytes.optim.PagedAdamW8bit(made, lr=lr, betas=settings.betas)
    return made_8bit


def rate(schedule: ScheduleSettings, step: int, total: int) -> float:
    """Multiplier of the learning rate for the 0-based `step` of `total`."""
    schedule = schedule.settled()
    warmup = schedule.warmup or 0
    warmup = warmup if warmup >= 1 else warmup * total
    warmup = min(math.ceil(warmup), max(0, total - 1))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, total - warmup)
    if schedule.name == "constant":
        return 1.0
    left = 1.0 - share if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
    return schedule.floor + (1.0 - schedule.floor) * left


def set_rate(optimizer: torch.optim.Optimizer, times: float) -> float:
    """Set every group's rate to its base times `times`; returns the first."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * times
    return float(optimizer.param_groups[0]["lr"])
