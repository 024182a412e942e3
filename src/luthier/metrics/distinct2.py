"""Share of different word pairs in an answer; low means that it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.words import words


@METRICS.register("distinct2")
def distinct2(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Distinct bigrams / bigrams a row; 1 for answers too short to repeat."""
    made = []
    for text in predictions:
        known = words(text)
        pairs = list(zip(known, known[1:], strict=False))
        made.append(len(set(pairs)) / len(pairs) if pairs else 1.0)
    return made
