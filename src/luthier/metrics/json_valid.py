"""Share of answers that are valid JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from luthier.metrics import METRICS


@METRICS.register("json_valid")
def json_valid(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 or 0 a row."""
    return [float(_valid(text)) for text in predictions]


def _valid(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
