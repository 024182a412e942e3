"""Overlap of answer and reference words (SQuAD's F1), characters for Chinese."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.words import normalized, words


@METRICS.register("qa_f1")
def qa_f1(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 of the bags of words, a row."""
    return [_f1(words(normalized(p)), words(normalized(r))) for p, r in zip(predictions, references, strict=True)]


def _f1(predicted: list[str], wanted: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if not predicted or not wanted:
        return float(predicted == wanted)
    return 2 * common / (len(predicted) + len(wanted))
