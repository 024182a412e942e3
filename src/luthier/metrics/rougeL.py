"""ROUGE-L F1: longest common subsequence of words (Lin 2004), right for Chinese."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.words import words


@METRICS.register("rougeL")
def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """F1 a row."""
    return [_lcs_f1(words(p)[:2000], words(r)[:2000]) for p, r in zip(predictions, references, strict=True)]


def _lcs_f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    row = [0] * (len(wanted) + 1)
    for word in predicted:
        diagonal = 0
        for place, other in enumerate(wanted, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(predicted) + len(wanted))
