"""Token-weighted loss over a set of rows, streaming: sums by row and by position are kept, never logits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.types import IGNORE, Row
from luthier.data.batching import evaluation_batches
from luthier.metrics.perplexity import exponential
from luthier.models import forward

BUCKETS = 24
"""Position buckets: 0–31, 32–63, 64–127, … each twice as wide as the one before."""
FIRST_BUCKET = 32


@dataclass
class RowLosses:
    """By row, in the order of the rows: summed loss, supervised units, right predictions.

    A unit is a supervised token, or the row itself where rows carry labels; then `logits` [n, classes] are kept
    (a few numbers a row). `by_position` [BUCKETS, 2] sums loss and tokens over all rows.
    """

    total: np.ndarray
    count: np.ndarray
    right: np.ndarray
    logits: np.ndarray | None = None
    by_position: np.ndarray = field(default_factory=lambda: np.zeros((BUCKETS, 2)))

    @property
    def loss(self) -> float:
        """Σ loss / Σ units: token-weighted."""
        return float(self.total.sum() / max(1.0, self.count.sum()))

    @property
    def accuracy(self) -> float:
        """Share of right units."""
        return float(self.right.sum() / max(1.0, self.count.sum()))

    @property
    def means(self) -> np.ndarray:
        """[n] loss a unit of each row; 0 for rows without any."""
        return self.total / np.maximum(1.0, self.count)

    def positions(self) -> list[dict[str, float]]:
        """[{"from", "to", "tokens", "loss"}] of the buckets that hold supervised tokens."""
        edges = [0, *(FIRST_BUCKET << i for i in range(BUCKETS))]
        return [
            {"from": edges[i], "to": edges[i + 1], "tokens": int(count), "loss": float(total / count)}
            for i, (total, count) in enumerate(self.by_position)
            if count
        ]


def perplexity(loss: float) -> float:
    """exp(loss), without overflow."""
    return float(exponential(np.array(loss)))


@torch.no_grad()
def row_losses(adapted: Any, rows: Sequence[Row], batch_tokens: int = 8192) -> RowLosses:
    """Measure every row once with the model as it is (adapter on, or off inside `off()`).

    Memory does not grow with the rows but for a few numbers each. Sums are float64.
    """
    adapted.eval()
    size = len(rows)
    found = RowLosses(np.zeros(size), np.zeros(size), np.zeros(size))
    for batch, where in placed_batches(rows, batch_tokens):
        batch = batch.to(adapted.device)
        if batch.labels is not None:
            _labelled(adapted, batch, where, found)
            continue
        losses, right = forward.token_scores(adapted.base, adapted.hidden(batch), batch.targets)
        _add(found, batch, where, losses, right)
    return found


def placed_batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[tuple[Any, list[int]]]:
    """Evaluation batches with the index of each of their rows (ids may occur twice)."""
    places: dict[str, list[int]] = defaultdict(list)
    for index in range(len(rows) - 1, -1, -1):
        places[rows[index].id].append(index)
    for batch in evaluation_batches(rows, batch_tokens):
        yield batch, [places[name].pop() for name in batch.row_ids]


def _add(found: RowLosses, batch: Any, where: list[int], losses: Tensor, right: Tensor) -> None:
    segment = batch.segment_of_token().to(losses.device)
    counted = (batch.targets != IGNORE).double()
    for name, values in (("total", losses.double()), ("count", counted), ("right", right.double())):
        sums = torch.zeros(len(where), dtype=torch.float64, device=losses.device).index_add_(0, segment, values)
        getattr(found, name)[where] = sums.cpu().numpy()
    bucket = (batch.position_ids // FIRST_BUCKET).clamp(min=0).double().add(1e-9).log2().floor().add(1).clamp(0)
    place = bucket.long().clamp(max=BUCKETS - 1)
    for column, values in enumerate((losses.double(), counted)):
        sums = torch.zeros(BUCKETS, dtype=torch.float64, device=losses.device).index_add_(0, place, values)
        found.by_position[:, column] += sums.cpu().numpy()


def _labelled(adapted: Any, batch: Any, where: list[int], found: RowLosses) -> None:
    from torch.nn import functional

    from luthier.tasks import label_text

    labels = batch.labels
    if adapted.task.spoken:
        logits, losses = label_text.scores(adapted, batch)
        right = logits.argmax(-1) == labels
        _keep(found, where, logits, losses, right)
        return
    logits = adapted.row_logits(batch).double()
    if labels.dtype == torch.int64:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        right = logits.argmax(-1) == labels
    elif labels.dim() == 2:
        losses = functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(1)
        right = ((logits > 0) == (labels > 0.5)).all(1)
    else:
        losses = (logits.squeeze(-1) - labels.double()).square()
        right = torch.zeros_like(losses)
    _keep(found, where, logits, losses, right)


def _keep(found: RowLosses, where: list[int], logits: Tensor, losses: Tensor, right: Tensor) -> None:
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
