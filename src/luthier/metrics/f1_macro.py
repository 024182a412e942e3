"""F1: harmonic mean of precision and recall; plain mean over classes."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.classes import averaged
from luthier.metrics.scored import Scored


@METRICS.register("f1_macro")
@traits("labels")
def f1_macro(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """0 to 1."""
    return averaged(predictions, references, "f1", "macro")
