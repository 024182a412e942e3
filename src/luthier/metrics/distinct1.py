"""Share of different words within an answer (Li et al. 2016); low means that it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.rouge1 import ngrams
from luthier.metrics.scored import Scored, mean
from luthier.metrics.words import words


@METRICS.register("distinct1")
@traits("text")
def distinct1(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1, a mean over rows; 1 for answers too short to repeat."""
    return mean([distinct(words(text), 1) for text in predictions])


def distinct(tokens: Sequence[str], size: int) -> float:
    """Different n-grams over all n-grams of one text."""
    found = ngrams(tokens, size)
    return len(found) / found.total() if found else 1.0
