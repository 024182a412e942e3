"""Share of answers that equal the reference after SQuAD's normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.words import normalized


@METRICS.register("exact_match")
def exact_match(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 or 0 a row."""
    return [float(normalized(p) == normalized(r)) for p, r in zip(predictions, references, strict=True)]
