"""Pearson's correlation of predicted and true values."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored


@METRICS.register("pearson")
@traits("values")
def pearson(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """−1 to 1; 0 where either side is constant."""
    x, y = (np.asarray(part, dtype=np.float64) for part in (predictions, references))
    x, y = (part - part.mean() if len(part) else part for part in (x, y))  # the sums below keep their digits
    return Scored(np.stack([x, y, x * x, y * y, x * y, np.ones_like(x)], axis=1), correlation)


def correlation(sums: np.ndarray) -> np.ndarray:
    """From the sums of x, y, x², y², xy, 1."""
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    below = np.sqrt(np.maximum(0, n * xx - x * x) * np.maximum(0, n * yy - y * y))
    tiny = 1e-12 * np.maximum(1e-300, n * np.sqrt(np.maximum(0, xx * yy)))
    return np.divide(n * xy - x * y, below, out=np.zeros_like(below), where=below > tiny)
