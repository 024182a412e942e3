"""Proof that a window extension acts: logits before and after it, on 32 tokens with chosen positions.

    inside   positions 0 … 15, all within the old window
    beyond   positions 0 … 15 and the last 16 of the new window

For RoPE the old model is the new one with its rotary modules built anew from the old config, so no second copy of the
weights is needed. Long rows are not needed either: what rotates is the position, not the place in the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.core.fingerprint import of_value
from luthier.models.base import Base
from luthier.models.window import RESERVED, position_table

PROBED = 16
LEAST = 1e-5
"""Smallest change of logits (relative to the largest) that counts as an effect: ten times float32's rounding."""


def prove(base: Base, config: Mapping[str, Any]) -> dict[str, float]:
    """{"beyond", "inside"}: the largest changes of logits. ModelError where the extension has no effect beyond the
    old window, or changes what it promised to leave as it was. `config` is the base's config without the plan."""
    plan = base.context
    if plan["family"] not in ("rope", "learned"):
        return {}
    length, old = int(plan["to"]), int(plan["from"])
    size = min(PROBED, old, length - old)
    inside = torch.arange(size)
    beyond = torch.cat([inside, torch.arange(length - size, length)])
    with torch.no_grad(), _evaluating(base.model):
        if plan["family"] == "rope":
            found = _rope(base, config, inside, beyond)
        else:
            found = _learned(base, inside, beyond, old)
    if not found["beyond"] > LEAST and not plan.get("control"):
        raise ModelError(
            f"the window extension {plan['method']} changes nothing beyond position {old}",
            where="context",
            remedy="this architecture does not read the changed config; choose another method or base",
        )
    if plan.get("inside") == "equal" and found["inside"] != 0.0:
        raise ModelError(
            f"{plan['method']} promised to leave the first {old} positions alone, but moved logits",
            where="context",
            remedy="this is a fault of luthier or of the architecture; choose another method",
        )
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _logits(base: Base, positions: Tensor) -> Tensor:
    """[T, vocabulary] float32 of fixed tokens at these positions."""
    kind = base.model.config.model_type
    device = next(base.model.parameters()).device
    table: Any = base.model.get_input_embeddings()
    size = table.weight.shape[0]
    ids = (torch.arange(len(positions), device=device) * 7919 + 11) % size
    options: dict[str, Any] = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    if base.kind == "decoder":
        options["use_cache"] = False
    first = 0 if kind == "opt" else RESERVED.get(kind, 0)  # OPT's table adds its offset itself
    return _states(base, {**options, "position_ids": positions.to(device)[None] + first})


def _states(base: Base, options: dict[str, Any]) -> Tensor:
    """Logits, or hidden states where there is no language-modelling head."""
    states = base.anatomy.backbone(**options).last_hidden_state[0]
    head = base.anatomy.head
    if head is None or base.head or hasattr(base.model, "score"):
        return torch.as_tensor(states.float())
    return torch.as_tensor(head[1](states).float())


def _change(new: Tensor, old: Tensor) -> float:
    return float((new - old).abs().max() / old.abs().max().clamp(min=1e-12))


def rotary_modules(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, module) of every module that rotates with its own frequencies."""
    found = []
    for name, module in model.named_modules():
        if hasattr(module, "inv_freq") and hasattr(module, "config"):
            parent, _, leaf = name.rpartition(".")
            found.append((model.get_submodule(parent), leaf, module))
    return found


@contextmanager
def as_before(base: Base, config: Mapping[str, Any]) -> Iterator[None]:
    """Inside: the base rotates as its own config (without the plan) says. ModelError where nothing rotates."""
    modules = rotary_modules(base.model)
    if not modules:
        raise ModelError("no rotary module was found in this model", where="context", remedy="choose another base")
    old = type(base.model.config).from_dict({k: v for k, v in config.items() if k != "transformers_version"})
    device = next(base.model.parameters()).device
    try:
        for parent, leaf, module in modules:
            setattr(parent, leaf, type(module)(config=old).to(device))  # type: ignore[call-arg]
        yield
    finally:
        for parent, leaf, module in modules:
            setattr(parent, leaf, module)


def _rope(base: Base, config: Mapping[str, Any], inside: Tensor, beyond: Tensor) -> dict[str, float]:
    new_inside, new_beyond = _logits(base, inside), _logits(base, beyond)
    with as_before(base, config):
        old_inside, old_beyond = _logits(base, inside), _logits(base, beyond)
    _logits(base, inside)  # a dynamic RoPE goes back to its short frequencies
    return {"beyond": _change(new_beyond, old_beyond), "inside": _change(new_inside, old_inside)}


def _learned(base: Base, inside: Tensor, beyond: Tensor, old: int) -> dict[str, float]:
    """The new rows must be read: without them the logits are others. The old ones are compared when they are copied."""
    _, _, table = position_table(base.model)
    first = RESERVED.get(base.model.config.model_type, 0) + old
    with_rows, before = _logits(base, beyond), _logits(base, inside)
    kept = table.weight.data
    try:
        table.weight.data = torch.cat([kept[:first], torch.zeros_like(kept[first:])])
        without, after = _logits(base, beyond), _logits(base, inside)
    finally:
        table.weight.data = kept
    return {"beyond": _change(with_rows, without), "inside": _change(before, after)}


def positions_of(model: nn.Module) -> str:
    """Hash of what positions mean to this model: its frequencies (6 digits), temperature and lengths."""
    config: Any = model.config
    keys = ("max_position_embeddings", "n_positions", "rope_parameters", "alibi", "relative_attention_max_distance")
    facts: dict[str, Any] = {key: getattr(config, key, None) for key in keys}
    for _, _, module in rotary_modules(model):
        frequencies: Any = getattr(module, "original_inv_freq", module.inv_freq)
        facts.setdefault("frequencies", []).append([f"{value:.6g}" for value in frequencies.tolist()])
        facts.setdefault("temperature", []).append(float(getattr(module, "attention_scaling", 1.0)))
    return of_value(facts)
