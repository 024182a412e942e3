"""Overlap of answer and reference as bags of words (SQuAD's F1), characters for Chinese."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean
from luthier.metrics.words import has_chinese, normalized, words


@METRICS.register("qa_f1")
@traits("text")
def qa_f1(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1."""
    return mean([_f1(_split(p), _split(r)) for p, r in zip(predictions, references, strict=True)])


def _split(text: str) -> list[str]:
    """SQuAD splits at spaces; that has no meaning in Chinese."""
    clean = normalized(text)
    return words(clean) if has_chinese(clean) else clean.split()


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))
