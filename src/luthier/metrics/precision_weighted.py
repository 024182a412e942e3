"""Precision: share of the rows called a class that are of it; mean over classes weighted by their rows."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.classes import averaged
from luthier.metrics.scored import Scored


@METRICS.register("precision_weighted")
@traits("labels")
def precision_weighted(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """0 to 1."""
    return averaged(predictions, references, "precision", "weighted")
