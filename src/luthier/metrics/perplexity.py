"""exp(loss): how many equally likely tokens the model hesitates between."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.loss import loss
from luthier.metrics.scored import Scored, ratio

LARGEST_EXPONENT = 700.0
"""exp of more overflows a float64; a perplexity of 1e304 says the same."""


@METRICS.register("perplexity")
@traits("tokens", higher_is_better=False)
def perplexity(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """1 and more, always finite."""
    return Scored(loss(predictions, references).rows, lambda sums: exponential(ratio(sums)))


def exponential(value: np.ndarray) -> np.ndarray:
    """exp without overflow."""
    return np.exp(np.minimum(LARGEST_EXPONENT, value))
