"""Expected calibration error (Naeini et al. 2015): how far the model's confidence is from its accuracy."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.classes import chosen
from luthier.metrics.scored import Scored

BINS = 10


@METRICS.register("ece")
@traits("labels", higher_is_better=False)
def ece(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """0 to 1: Σ over bins of (rows in the bin / rows) · |accuracy − mean confidence|."""
    shares = np.asarray(predictions)
    sure, right = shares.max(1), chosen(shares) == np.asarray(references)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    rows = np.zeros((len(shares), 2 * BINS + 1))
    every = np.arange(len(shares))
    rows[every, place], rows[every, BINS + place], rows[:, -1] = right, sure, 1.0

    def combine(sums: np.ndarray) -> np.ndarray:
        gaps = np.abs(sums[..., :BINS] - sums[..., BINS : 2 * BINS]).sum(-1)
        return np.divide(gaps, sums[..., -1], out=np.zeros_like(gaps), where=sums[..., -1] > 0)

    return Scored(rows, combine)
