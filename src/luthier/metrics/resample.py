"""Paired comparison of two models on the same rows: bootstrap interval, permutation test, smallest visible effect."""

from __future__ import annotations

from typing import Any

import numpy as np

from luthier.core.seeding import generator
from luthier.metrics.scored import BLOCK, Ranked, Scored

RANKED_RESAMPLES = 200
"""Most resamples of metrics that must be ranked anew each time."""

POWER = 1.96 + 0.8416
"""Standard errors between zero and a true effect that is seen (95 % interval) in 80 % of repetitions."""


def paired(
    base: Scored, tuned: Scored, resamples: int = 1000, seed: int = 0, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """tuned − base: {"value", "ci95", "p", "detectable", "rows"}.

    ci95: percentile bootstrap; rows (whole groups, where rows hang together) are drawn with their weights for both
    models at once (Efron & Tibshirani 1993). p: two-sided permutation test, base and tuned swapped row by row
    (Noreen 1989). detectable: smallest true difference that this many rows show in 80 % of repetitions.
    """
    value = tuned.value - base.value
    if groups is not None and len(groups):
        base, tuned = base.grouped(groups), tuned.grouped(groups)
    count = len(base.rows)
    if count < 2:
        return {"value": value, "ci95": [value, value], "p": 1.0, "detectable": None, "rows": count}
    if isinstance(base, Ranked):
        resamples = min(resamples, RANKED_RESAMPLES)
    drawn, beyond = np.empty(resamples), 0
    source = generator(seed, "bootstrap", count)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        weights = source.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        drawn[start : start + size] = tuned.weighted(weights) - base.weighted(weights)
        beyond += int((np.abs(_swapped(base, tuned, source, size)) >= abs(value) - 1e-12).sum())
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {
        "value": value,
        "ci95": [float(low), float(high)],
        "p": float((beyond + 1) / (resamples + 1)),
        "detectable": float(POWER * np.nanstd(drawn, ddof=1)),
        "rows": count,
    }


def _swapped(base: Scored, tuned: Scored, source: np.random.Generator, size: int) -> np.ndarray:
    """[size] differences after swapping the two models on a random half of the rows."""
    both = type(base)(np.concatenate([base.rows, tuned.rows]), base.combine)
    swap = source.integers(0, 2, size=(size, len(base.rows))).astype(np.float64)
    return both.weighted(np.concatenate([swap, 1 - swap], axis=1)) - both.weighted(
        np.concatenate([1 - swap, swap], axis=1)
    )


def group_indices(names: list[str]) -> np.ndarray | None:
    """[n] indices of equal names; None where all differ (then rows are their own groups)."""
    known: dict[str, int] = {}
    places = np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)
    return None if len(known) == len(names) or len(known) < 2 else places
