"""chrF2 through sacrebleu: character n-grams, the same for every language."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS


@METRICS.register("chrf")
def chrf(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """0 to 100 a row."""
    import sacrebleu

    return [float(sacrebleu.sentence_chrf(p, [r]).score) for p, r in zip(predictions, references, strict=True)]
