"""Share of supervised tokens that are the model's first choice (given all tokens before them)."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, ratio


@METRICS.register("token_accuracy")
@traits("tokens")
def token_accuracy(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """0 to 1."""
    return Scored(np.stack([np.asarray(predictions)[:, 1], np.asarray(references)], axis=1).astype(np.float64), ratio)
