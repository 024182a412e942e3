"""An optimizer's memory as named tensors and plain numbers, so that it fits safetensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def to_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """CPU copies of the state, `<weight index>.<name>` (the order of weights is stable), and its plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in _flat(values).items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().to("cpu", copy=True)
            elif isinstance(value, int | float):
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """bitsandbytes puts its 8-bit moments into a mapping within the state, and takes them beside it too."""
    found = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    for inner in values.values():
        if isinstance(inner, Mapping):
            found |= inner
    return found


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Inverse of `to_tensors`; rates and decay stay those of the present settings."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**numbers, **tensors}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def expected_bytes(name: str, weights: Mapping[str, Tensor]) -> int:
    """Bytes that this optimizer will keep for these weights, before it has taken a step."""
    total = 0
    for weight in weights.values():
        count, size = weight.numel(), weight.element_size()
        if name == "adamw":
            total += 2 * count * size
        elif name == "sgd":
            total += count * size
        elif name == "paged_adamw_8bit":
            total += 2 * count if count >= 4096 else 8 * count
        elif weight.dim() > 1:
            total += (count // weight.shape[-1] + count // weight.shape[-2]) * 4
        else:
            total += count * 4
    return total
