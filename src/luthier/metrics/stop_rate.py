"""Share of answers that end by themselves, with a stop token, within the limit."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean


@METRICS.register("stop_rate")
@traits("endings")
def stop_rate(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1; `predictions` are the endings, "stop" or "length"."""
    return mean([ending == "stop" for ending in predictions])
