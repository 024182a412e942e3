"""Sentence BLEU with exponential smoothing through sacrebleu, Chinese by characters; a mean over rows."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.words import has_chinese


@METRICS.register("bleu")
def bleu(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """0 to 100 a row (the unit of sacrebleu)."""
    import sacrebleu

    return [
        float(sacrebleu.sentence_bleu(p, [r], tokenize="zh" if has_chinese(r) else "13a").score)
        for p, r in zip(predictions, references, strict=True)
    ]
