"""ROUGE-2 F1: shared pairs of words (Lin 2004), right for Chinese."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.rouge1 import ngram_f1
from luthier.metrics.scored import Scored, mean
from luthier.metrics.words import words


@METRICS.register("rouge2")
@traits("text")
def rouge2(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1, a mean over rows."""
    return mean([ngram_f1(words(p), words(r), 2) for p, r in zip(predictions, references, strict=True)])
