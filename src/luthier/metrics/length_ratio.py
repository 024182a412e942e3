"""Words of all answers over words of all references; 1 is the right length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, ratio
from luthier.metrics.words import words


@METRICS.register("length_ratio")
@traits("text", higher_is_better=None)
def length_ratio(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 and more; neither way is better."""
    sizes = [(len(words(p)), len(words(r))) for p, r in zip(predictions, references, strict=True)]
    return Scored(np.array(sizes, dtype=np.float64).reshape(-1, 2), ratio)
