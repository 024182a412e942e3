"""Loss spikes: telling one from the noise, and what is done about it (`train.spikes`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from luthier.engine.batch import Batch, split_rows

WINDOW = 20
FACTOR = 6.0
LEAST_JUMP = 1.5
"""A step loss is a spike when it is FACTOR median absolute deviations over the median of the last WINDOW step
losses and LEAST_JUMP times that median."""


def threshold(recent: Sequence[float]) -> float | None:
    """The loss above which a step is a spike; None while too little is known."""
    if len(recent) < WINDOW:
        return None
    middle = statistics.median(recent)
    spread = statistics.median(abs(value - middle) for value in recent) + 1e-6
    return max(middle + FACTOR * spread, LEAST_JUMP * middle)


def culprits(means: Sequence[float], rows: Sequence[str], limit: float) -> list[str]:
    """The rows over the limit, worst first; the worst row when none is."""
    ranked = sorted(zip(means, rows, strict=True), reverse=True)
    return [row for mean, row in ranked if mean > limit] or [row for _, row in ranked[:1]]


def without(group: Sequence[Batch], skipped: Sequence[str]) -> list[Batch]:
    """The group without these rows (batches that hold one are cut into single rows)."""
    bad = set(skipped)
    if not bad:
        return list(group)
    left: list[Batch] = []
    for batch in group:
        if bad.isdisjoint(batch.row_ids):
            left.append(batch)
        else:
            left += [part for part in split_rows(batch, len(batch.row_ids)) if part.row_ids[0] not in bad]
    return left
