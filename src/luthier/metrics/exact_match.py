"""Share of answers that equal the reference after SQuAD's normalisation, Chinese too."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean
from luthier.metrics.words import normalized


@METRICS.register("exact_match")
@traits("text")
def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1."""
    return mean([normalized(p) == normalized(r) for p, r in zip(predictions, references, strict=True)])
