"""Mean negative log-likelihood over supervised tokens: Σ loss / Σ tokens, in nats."""

from __future__ import annotations

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, ratio


@METRICS.register("loss")
@traits("tokens", higher_is_better=False)
def loss(predictions: np.ndarray, references: np.ndarray) -> Scored:
    """Nats a token. Never a mean of row or batch means, which weighs short rows too much."""
    return Scored(np.stack([np.asarray(predictions)[:, 0], np.asarray(references)], axis=1).astype(np.float64), ratio)
