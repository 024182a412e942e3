"""Spearman's rank correlation of predicted and true values."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.pearson import pearson
from luthier.metrics.scored import Ranked


@METRICS.register("spearman")
@traits("values")
def spearman(predictions: np.ndarray, references: np.ndarray) -> Ranked:
    """−1 to 1; 0 where either side is constant."""
    return Ranked(np.stack([np.asarray(predictions), np.asarray(references)], axis=1).astype(np.float64), _of_ranks)


def _of_ranks(rows: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.array(pearson(rankdata(rows[:, 0]), rankdata(rows[:, 1])).value)
