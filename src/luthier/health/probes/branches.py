"""What a branch does on real tokens: its strength, its entropy over channels, its active share.

Every row goes alone through the model, so there is no padding to mask; the probe rows and the order are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.health.facts import LayerNumbers

ACTIVE = 1e-3
"""A cell is active when its size is above this share of the rms of what the branch is added to. Dense branches are
never exactly zero, so "not equal to zero" would say nothing."""


@dataclass
class Gauge:
    """Running sums of one branch."""

    branch: float = 0.0
    beside: float = 0.0
    tokens: int = 0
    entropy: float = 0.0
    lively: int = 0
    active: float = 0.0
    cells: int = 0
    ratios: list[Tensor] = field(default_factory=list)
    fired: Tensor | None = None
    firing: float = 0.0
    units: int = 0
    mass: list[float] = field(default_factory=list)
    finite: bool = True

    def add(self, change: Tensor, beside: Tensor) -> None:
        """`change` [tokens, channels] is what the branch adds to `beside`."""
        change, beside = change.detach().double(), beside.detach().double()
        if not bool(torch.isfinite(change).all()):
            self.finite = False
            return
        square, under = change.square().sum(-1), beside.square().sum(-1)
        self.branch, self.beside = self.branch + float(square.sum()), self.beside + float(under.sum())
        self.tokens += len(change)
        self.ratios.append((square / under.clamp_min(1e-30)).sqrt().cpu())
        alive = square > 0
        if bool(alive.any()) and change.shape[-1] > 1:
            self.entropy += float(channel_entropy(change[alive]).sum())
            self.lively += int(alive.sum())
        limit = ACTIVE * beside.square().mean().sqrt()
        self.active += float((change.abs() > limit).sum())
        self.cells += change.numel()

    def add_units(self, hidden: Tensor) -> None:
        """Hidden units of a bottleneck behind its activation, [tokens, units]."""
        on = hidden.detach() > 0
        self.firing += float(on.sum())
        self.units += on.numel()
        ever = on.any(0).cpu()
        self.fired = ever if self.fired is None else self.fired | ever

    def fill(self, numbers: LayerNumbers) -> None:
        """Write the numbers."""
        numbers.finite = numbers.finite and self.finite
        if self.mass:
            numbers.prefix_mass = sum(self.mass) / len(self.mass)
        if not self.tokens:
            return
        numbers.relative_strength = math.sqrt(self.branch / self.beside) if self.beside else None
        numbers.strength_p95 = float(torch.cat(self.ratios).quantile(0.95)) if self.beside else None
        numbers.activation_entropy = self.entropy / self.lively if self.lively else None
        numbers.activation_rate = self.active / self.cells
        if self.fired is not None:
            numbers.activation_rate = self.firing / self.units
            numbers.dead_units = 1 - float(self.fired.double().mean())


def channel_entropy(change: Tensor) -> Tensor:
    """[tokens] entropy of D²/ΣD² over channels divided by log(channels): 0 to 1, and the same for 2 D as for D.

    (A softmax of D would be maximal for a dead branch and would hang on the scale.)
    """
    share = change.square() / change.square().sum(-1, keepdim=True)
    return -(share * torch.log(share.clamp_min(1e-300))).sum(-1) / math.log(change.shape[-1])


@contextmanager
def watched(adapted: Any, gauges: dict[str, Gauge], length: Callable[[], int]) -> Iterator[None]:
    """Inside: every forward of one row adds to the gauges. `length` is that of the row without virtual tokens."""
    handles = []
    for name, part in adapted.attached.branches():
        gauge = gauges.setdefault(name, Gauge())
        if isinstance(part, nn.Module) and hasattr(part, "base_layer"):
            handles.append(part.register_forward_hook(_tuner(gauge, length)))
        elif isinstance(part, nn.Module) and hasattr(part, "down") and hasattr(part, "up"):
            handles.append(part.register_forward_hook(_bottleneck(gauge, length)))
        elif not isinstance(part, nn.Module):
            module = adapted.base.model.get_submodule(name)
            handles.append(module.register_forward_hook(_prefixed(gauge), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(value: Tensor, length: int) -> Tensor:
    return value.reshape(-1, value.shape[-1])[-length:]


def _tuner(gauge: Gauge, length: Callable[[], int]) -> Any:
    """A layer that wraps the base's own: the branch is the difference to the wrapped layer on the same input."""

    def hook(module: Any, given: tuple[Any, ...], out: Tensor) -> None:
        if getattr(module, "_disable_adapters", False):
            return
        plain = module.get_base_layer()(given[0])
        gauge.add(_rows(out.detach().float() - plain.detach().float(), length()), _rows(plain, length()))

    return hook


def _bottleneck(gauge: Gauge, length: Callable[[], int]) -> Any:
    def hook(module: Any, given: tuple[Any, ...], out: Tensor) -> None:
        gauge.add(_rows(out, length()), _rows(given[0], length()))
        activation = getattr(module, "activation", None)
        if callable(activation):
            gauge.add_units(_rows(activation(module.down(given[0].float())), length()))

    return hook


def _prefixed(gauge: Gauge) -> Any:
    """An attention that sees a prefix: compared with the same attention on the same input without it."""

    def hook(module: Any, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        past = named.get("past_key_values")
        states = named.get("hidden_states", given[0] if given else None)
        if past is None or states is None:
            return
        length = states.shape[-2]
        mask = named.get("attention_mask")
        plain_mask = mask[..., -length:] if isinstance(mask, Tensor) and mask.dim() == 4 else mask
        plain = module.forward(*given, **{**named, "past_key_values": None, "attention_mask": plain_mask})
        gauge.add(_rows(_first(out).float() - _first(plain).float(), length), _rows(_first(plain), length))
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if isinstance(weights, Tensor) and weights.dim() == 4 and weights.shape[-1] > length:
            gauge.mass.append(float(weights[..., : weights.shape[-1] - length].sum(-1).mean()))

    return hook


def _first(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found.detach()
