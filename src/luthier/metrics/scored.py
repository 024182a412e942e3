"""The result of a metric: a value that can be computed again for any weighting of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 64
"""Resamples that are held at a time."""


@dataclass(frozen=True)
class Scored:
    """Numbers of each row that add up, and how their sums become the value.

    `rows` [n, k]; `combine` takes sums [..., k] to values [...]. A mean is k = 2 (score, 1); a token-weighted loss
    is k = 2 (loss, tokens), so that resampled values are ratios of sums and never means of ratios.
    """

    rows: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """The metric on all rows; 0 where there are none."""
        return float(self.combine(self.rows.sum(0, dtype=np.float64))) if len(self.rows) else 0.0

    @property
    def each(self) -> np.ndarray:
        """[n] the metric on every row by itself."""
        return np.asarray(self.combine(self.rows.astype(np.float64)), dtype=np.float64)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """[B] values under [B, n] row weights (how often each row was drawn)."""
        return np.asarray(self.combine(weights @ self.rows))

    def take(self, places: Sequence[int] | np.ndarray) -> Scored:
        """The same metric on some of the rows."""
        return Scored(self.rows[np.asarray(places, dtype=np.int64)], self.combine)

    def grouped(self, groups: np.ndarray) -> Scored:
        """Rows of one group (windows of one document) as one row. `groups` [n] are indices from 0."""
        made = np.zeros((int(groups.max()) + 1, self.rows.shape[1]))
        np.add.at(made, groups, self.rows)
        return Scored(made, self.combine)


@dataclass(frozen=True)
class Ranked(Scored):
    """A metric that hangs on the order of all rows (AUROC, Spearman): computed anew from the drawn rows."""

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """[B] values; a row with weight 2 counts twice."""
        every = np.arange(weights.shape[1])
        drawn = [np.repeat(self.rows, weight.astype(np.int64)[every], axis=0) for weight in weights]
        return np.array([float(self.combine(rows)) for rows in drawn])

    @property
    def value(self) -> float:
        """The metric on all rows."""
        return float(self.combine(self.rows)) if len(self.rows) else 0.0

    @property
    def each(self) -> np.ndarray:
        """No row has a value by itself."""
        return np.full(len(self.rows), np.nan)

    def take(self, places: Sequence[int] | np.ndarray) -> Ranked:
        """The same metric on some of the rows."""
        return Ranked(self.rows[np.asarray(places, dtype=np.int64)], self.combine)

    def grouped(self, groups: np.ndarray) -> Ranked:
        """Ranks cannot be added; rows stay rows."""
        return self


def ratio(sums: np.ndarray) -> np.ndarray:
    """First sum over second, 0 where the second is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0], dtype=float), where=sums[..., 1] != 0)


def mean(scores: Any) -> Scored:
    """The mean of one score a row."""
    values = np.asarray(scores, dtype=np.float64)
    return Scored(np.stack([values, np.ones_like(values)], axis=1).reshape(-1, 2), ratio)
