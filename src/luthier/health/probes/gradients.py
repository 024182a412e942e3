"""Gradient norm of every branch on a few probe rows: where learning still arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.health.facts import LayerNumbers

ROWS = 8
TOKENS = 4096
"""Most tokens of these rows together (one row at least): a probe must not take more memory than the training."""


def measure(adapted: Any, rows: Sequence[Row], layers: Sequence[LayerNumbers]) -> None:
    """Fill `gradient_norm`: of the mean loss over supervised units, by branch (by layer for in-place weights).

    Trained weights get back the gradient and the flag that they had.
    """
    weights = dict(adapted.parameters_by_name())
    if not weights or not rows:
        return
    before = {name: (weight.requires_grad, weight.grad) for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
            weight.grad = None
        with torch.enable_grad():
            batch = from_rows(_few(rows)).to(adapted.device)
            virtual = adapted.virtual(batch)
            pairs = list(virtual.prefix or ()) if virtual is not None else []
            for value in [part for pair in pairs for part in pair]:
                value.retain_grad()
            options = {key: True for key, on in adapted.loss_options.items() if key == "checkpointing" and on}
            made = adapted.task.loss(adapted.base, batch, virtual, adapted.layout, **options)
            (made.total / max(1, made.count)).backward()
        _share_out(adapted, weights, pairs, layers)
    finally:
        for name, (flag, gradient) in before.items():
            weights[name].requires_grad_(flag)
            weights[name].grad = gradient


def _few(rows: Sequence[Row]) -> list[Row]:
    """The first rows, as many as go together."""
    taken = [rows[0]]
    for row in rows[1:ROWS]:
        if sum(len(one.input_ids) for one in (*taken, row)) > TOKENS:
            break
        taken.append(row)
    return taken


def _share_out(
    adapted: Any, weights: dict[str, nn.Parameter], pairs: list[tuple[Tensor, Tensor]], layers: Sequence[LayerNumbers]
) -> None:
    parts = dict(adapted.attached.branches())
    trained = {id(weight) for weight in weights.values()}
    for one in layers:
        part = parts.get(one.name)
        if isinstance(part, nn.Module):
            one.gradient_norm = _norm([w.grad for w in part.parameters() if id(w) in trained])
        elif isinstance(part, dict) and pairs:
            one.gradient_norm = _norm([value.grad for value in pairs[int(part["layer"])]])
        else:
            own = [w.grad for name, w in weights.items() if name.startswith(one.name + ".")]
            one.gradient_norm = _norm(own) if own else None


def _norm(gradients: Sequence[Tensor | None]) -> float:
    """0 where no gradient arrives."""
    return sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5
