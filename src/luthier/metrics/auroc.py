"""Area under the ROC curve for two classes: the chance that a positive row is ranked above a negative one."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Ranked


@METRICS.register("auroc")
@traits("labels")
def auroc(predictions: np.ndarray, references: np.ndarray) -> Ranked:
    """0 to 1, ties count one half; the second class is the positive one. NaN where only one class is there."""
    return Ranked(np.stack([np.asarray(predictions)[:, 1], np.asarray(references)], axis=1).astype(np.float64), _area)


def _area(rows: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    positive = rows[:, 1] > 0
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return np.array(np.nan)
    above = rankdata(rows[:, 0])[positive].sum() - ones * (ones + 1) / 2
    return np.array(above / (ones * zeros))
