"""Mean squared error of predicted values."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean


@METRICS.register("mse")
@traits("values", higher_is_better=False)
def mse(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """In the square of the value's unit."""
    return mean((np.asarray(predictions, dtype=np.float64) - np.asarray(references, dtype=np.float64)) ** 2)
