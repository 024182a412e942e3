"""Length of the answer over the length of the reference, in words."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS
from luthier.metrics.words import words


@METRICS.register("length_ratio")
def length_ratio(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """A ratio a row; 1 where both are empty."""
    sizes = [(len(words(p)), len(words(r))) for p, r in zip(predictions, references, strict=True)]
    return [p / r if r else float(p == 0) for p, r in sizes]
