"""F1: harmonic mean of precision and recall; mean over classes weighted by their rows."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.classes import averaged
from luthier.metrics.scored import Scored


@METRICS.register("f1_weighted")
@traits("labels")
def f1_weighted(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """0 to 1."""
    return averaged(predictions, references, "f1", "weighted")
