"""ROUGE-1 F1: shared words (Lin 2004), right for Chinese."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.words import words


def ngram_f1(predicted: list[str], wanted: list[str], size: int) -> float:
    """F1 of clipped n-gram matches."""
    grams = [Counter(zip(*(text[i:] for i in range(size)), strict=False)) for text in (predicted, wanted)]
    common, total = sum((grams[0] & grams[1]).values()), sum(map(sum, (g.values() for g in grams)))
    return 2 * common / total if total else float(predicted == wanted)


@METRICS.register("rouge1")
def rouge1(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 a row."""
    return [ngram_f1(words(p), words(r), 1) for p, r in zip(predictions, references, strict=True)]
