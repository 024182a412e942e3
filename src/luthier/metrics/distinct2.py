"""Share of different pairs of words within an answer (Li et al. 2016); low means that it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.distinct1 import distinct
from luthier.metrics.scored import Scored, mean
from luthier.metrics.words import words


@METRICS.register("distinct2")
@traits("text")
def distinct2(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1, a mean over rows; 1 for answers too short to repeat."""
    return mean([distinct(words(text), 2) for text in predictions])
