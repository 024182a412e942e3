"""Share of four-word groups that stood in the same answer before: loops show here first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.rouge1 import ngrams
from luthier.metrics.scored import Scored, ratio
from luthier.metrics.words import words

SIZE = 4


@METRICS.register("repetition")
@traits("text", higher_is_better=False)
def repetition(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1, over all answers."""
    found = [ngrams(words(text), SIZE) for text in predictions]
    return Scored(np.array([[f.total() - len(f), f.total()] for f in found], dtype=np.float64).reshape(-1, 2), ratio)
