"""Matthews correlation of predicted and true classes (Gorodkin 2004): 0 is chance, whatever the class sizes."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.classes import counts
from luthier.metrics.scored import Scored


@METRICS.register("mcc")
@traits("labels")
def mcc(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """−1 to 1; 0 where one class is all there is. One class a row."""
    made = counts(predictions, references)
    classes = made.shape[2]

    def combine(sums: np.ndarray) -> np.ndarray:
        parts = sums.reshape(*sums.shape[:-1], 3, classes)
        right, predicted, true = parts[..., 0, :].sum(-1), parts[..., 1, :], parts[..., 2, :]
        rows = true.sum(-1)
        above = right * rows - (predicted * true).sum(-1)
        below = np.sqrt((rows**2 - (predicted**2).sum(-1)) * (rows**2 - (true**2).sum(-1)))
        return np.divide(above, below, out=np.zeros_like(below), where=below > 0)

    return Scored(made.reshape(len(made), -1), combine)
