"""Token-weighted loss over a set of rows, streaming: sums by row are kept, never logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.core.types import IGNORE, Row
from luthier.data.batching import evaluation_batches
from luthier.models import forward

LARGEST_EXPONENT = 700.0


@dataclass
class RowLosses:
    """By row, in the order of the rows: summed loss, supervised units, right predictions; labels where there are."""

    total: np.ndarray
    count: np.ndarray
    right: np.ndarray
    logits: np.ndarray | None = None

    @property
    def loss(self) -> float:
        """Σ loss / Σ units: token-weighted."""
        return float(self.total.sum() / max(1.0, self.count.sum()))

    @property
    def accuracy(self) -> float:
        """Share of right units."""
        return float(self.right.sum() / max(1.0, self.count.sum()))


def perplexity(loss: float) -> float:
    """exp(loss), without overflow."""
    return math.exp(min(LARGEST_EXPONENT, loss))


@torch.no_grad()
def row_losses(adapted: Any, rows: Sequence[Row], batch_tokens: int = 8192) -> RowLosses:
    """Measure every row once with the model as it is (adapter on, or off inside `off()`)."""
    adapted.eval()
    place = {row.id: index for index, row in enumerate(rows)}
    size = len(rows)
    found = RowLosses(np.zeros(size), np.zeros(size), np.zeros(size))
    for batch in evaluation_batches(rows, batch_tokens):
        where = [place[name] for name in batch.row_ids]
        batch = batch.to(adapted.device)
        if batch.labels is not None:
            _labelled(adapted, batch, where, found)
            continue
        losses, right = forward.token_scores(adapted.base, adapted.hidden(batch), batch.targets)
        segment = batch.segment_of_token().to(losses.device)
        for name, values in (
            ("total", losses.double()),
            ("count", (batch.targets != IGNORE).double()),
            ("right", right.double()),
        ):
            sums = torch.zeros(len(where), dtype=torch.float64, device=losses.device).index_add_(0, segment, values)
            getattr(found, name)[where] = sums.cpu().numpy()
    return found


def _labelled(adapted: Any, batch: Any, where: list[int], found: RowLosses) -> None:
    from torch.nn import functional

    logits = adapted.row_logits(batch).double()
    labels = batch.labels
    if labels.dtype == torch.int64:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        right = logits.argmax(-1) == labels
    elif labels.dim() == 2:
        losses = functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(1)
        right = ((logits > 0) == (labels > 0.5)).all(1)
    else:
        losses = (logits.squeeze(-1) - labels.double()).square()
        right = torch.zeros_like(losses)
    if found.logits is None:
        found.logits = np.zeros((len(found.total), logits.shape[1]))
    found.total[where], found.count[where] = losses.cpu().numpy(), 1.0
    found.right[where], found.logits[where] = right.double().cpu().numpy(), logits.cpu().numpy()


def validation_loss(adapted: Any, rows: Sequence[Row], batch_tokens: int = 8192) -> dict[str, Any]:
    """What the loop asks for: loss, perplexity, accuracy; `rows` are the per-row sums."""
    found = row_losses(adapted, rows, batch_tokens)
    name = "accuracy" if found.logits is not None else "token_accuracy"
    made: dict[str, Any] = {"loss": found.loss, name: found.accuracy, "rows": found}
    if found.logits is None:
        made["perplexity"] = perplexity(found.loss)
    return made
