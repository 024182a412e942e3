"""Rows alone through the model, adapter on and off: losses, change of hidden states by layer, effect on the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.types import IGNORE, Row
from luthier.engine.batch import Batch, from_rows
from luthier.health.probes.branches import Gauge, watched
from luthier.health.probes.similarity import MOST_TOKENS, Likeness
from luthier.models import forward


@dataclass
class Seen:
    """What the probe rows showed. `tuned` and `base` are (summed loss, units) a row."""

    tuned: np.ndarray
    base: np.ndarray
    branches: dict[str, Gauge] = field(default_factory=dict)
    layers: dict[str, Gauge] = field(default_factory=dict)
    likeness: dict[str, Likeness] = field(default_factory=dict)
    final: Gauge = field(default_factory=Gauge)
    effect: float = 0.0
    finite: bool = True
    outputs: list[Tensor] = field(default_factory=list)
    """Of each row alone: token losses, or row logits."""


@torch.no_grad()
def look(adapted: Any, rows: Sequence[Row]) -> Seen:
    """Every row alone, twice."""
    adapted.eval()
    seen = Seen(np.zeros((len(rows), 2)), np.zeros((len(rows), 2)))
    size = [0]
    with _plain_layout(adapted):
        for index, row in enumerate(rows):
            batch = from_rows([row]).to(adapted.device)
            size[0] = len(row.input_ids)
            with watched(adapted, seen.branches, lambda: size[0]), _layers(adapted, size[0]) as on:
                final, output, loss = one_row(adapted, batch)
            with adapted.off(), _layers(adapted, size[0]) as off:
                plain_final, plain_output, plain_loss = one_row(adapted, batch)
            seen.tuned[index], seen.base[index] = loss, plain_loss
            seen.outputs.append(output)
            seen.finite = seen.finite and bool(torch.isfinite(output).all())
            if seen.finite:
                seen.effect = max(seen.effect, float((output - plain_output).abs().max()) if output.numel() else 0.0)
            seen.final.add(final.double() - plain_final.double(), plain_final)
            for name in on:
                seen.layers.setdefault(name, Gauge()).add(on[name].double() - off[name].double(), off[name])
                likeness = seen.likeness.setdefault(name, Likeness())
                likeness.add(on[name], off[name], max(1, MOST_TOKENS // len(rows)))
    return seen


def one_row(adapted: Any, batch: Batch) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """(final hidden states [T, hidden], token losses or row logits, (summed loss, units))."""
    hidden = adapted.hidden(batch)
    if batch.labels is None:
        losses = forward.token_nll(adapted.base, hidden, batch.targets)
        return hidden, losses.float(), (float(losses.double().sum()), float((batch.targets != IGNORE).sum()))
    logits = adapted.row_logits(batch).float()
    return hidden, logits, (float(row_loss(logits, batch.labels).sum()), 1.0)


def row_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[S] loss of labelled rows."""
    from torch.nn import functional

    if labels.dtype == torch.int64:
        return functional.cross_entropy(logits.double(), labels, reduction="none")
    if labels.dim() == 2:
        return functional.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none").mean(1)
    return (logits.squeeze(-1).double() - labels.double()).square()


@contextmanager
def _layers(adapted: Any, length: int) -> Iterator[dict[str, Tensor]]:
    """Outputs of every layer for the row's own tokens."""
    found: dict[str, Tensor] = {}
    handles = []

    def note(name: str) -> Any:
        def hook(module: Any, given: Any, out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            found[name] = value.detach().reshape(-1, value.shape[-1])[-length:]

        return hook

    for name, module in adapted.base.anatomy.layers:
        handles.append(module.register_forward_hook(note(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _plain_layout(adapted: Any) -> Iterator[None]:
    """Inside: the padded layout with eager attention (which shows its weights), where the model has both.

    Encoders take prefixes only through the flat layout; they keep it.
    """
    model, before = adapted.base.model, adapted.layout
    implementation = getattr(model.config, "_attn_implementation", None)
    switch = adapted.base.kind == "decoder" and adapted.attached.virtual_tokens > 0
    try:
        if adapted.base.kind == "decoder":
            adapted.layout = "padded"
        if switch:
            model.set_attn_implementation("eager")
        yield
    finally:
        adapted.layout = before
        if switch and implementation:
            model.set_attn_implementation(implementation)
