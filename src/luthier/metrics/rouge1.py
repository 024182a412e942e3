"""ROUGE-1 F1: shared words (Lin 2004), right for Chinese."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean
from luthier.metrics.words import words


def ngrams(tokens: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram stands in the text."""
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))


def ngram_f1(predicted: list[str], wanted: list[str], size: int) -> float:
    """F1 of clipped n-gram matches; texts too short for an n-gram score 1 when equal, else 0."""
    mine, other = ngrams(predicted, size), ngrams(wanted, size)
    total = mine.total() + other.total()
    return 2 * (mine & other).total() / total if total else float(predicted == wanted)


@METRICS.register("rouge1")
@traits("text")
def rouge1(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1, a mean over rows."""
    return mean([ngram_f1(words(p), words(r), 1) for p, r in zip(predictions, references, strict=True)])
