"""Recall: share of the rows of a class that are called it; mean over classes weighted by their rows."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.classes import averaged
from luthier.metrics.scored import Scored


@METRICS.register("recall_weighted")
@traits("labels")
def recall_weighted(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """0 to 1."""
    return averaged(predictions, references, "recall", "weighted")
