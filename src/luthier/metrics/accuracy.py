"""Share of rows whose class (or whole set of labels) is right."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.classes import indicators
from luthier.metrics.scored import Scored, mean


@METRICS.register("accuracy")
@traits("labels")
def accuracy(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """0 to 1."""
    predicted, true = indicators(np.asarray(predictions), np.asarray(references))
    return mean((predicted == true).all(1))
