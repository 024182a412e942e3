"""ROUGE-2 F1: shared pairs of words (Lin 2004), right for Chinese."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.rouge1 import ngram_f1
from luthier.metrics.words import words


@METRICS.register("rouge2")
def rouge2(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 a row."""
    return [ngram_f1(words(p), words(r), 2) for p, r in zip(predictions, references, strict=True)]
