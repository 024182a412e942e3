"""ROUGE-L F1: longest common subsequence of words (Lin 2004), right for Chinese."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean
from luthier.metrics.words import words

LONGEST = 4000
"""Words of a text that are looked at; the comparison takes the product of both lengths."""


@METRICS.register("rougeL")
@traits("text")
def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1, a mean over rows."""
    return mean([_f1(words(p)[:LONGEST], words(r)[:LONGEST]) for p, r in zip(predictions, references, strict=True)])


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    return 2 * common_subsequence(predicted, wanted) / (len(predicted) + len(wanted))


def common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    known: dict[str, int] = {}
    codes = np.array([known.setdefault(word, len(known)) for word in right])
    row = np.zeros(len(right) + 1, dtype=np.int64)
    for word in left:
        reached = np.where(codes == known.get(word, -1), row[:-1] + 1, row[1:])
        row[1:] = np.maximum.accumulate(reached)
    return int(row[-1])
