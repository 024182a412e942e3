"""Whether the last number of the answer is the last number of the reference (GSM8K's way)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.metrics import METRICS

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def last_number(text: str) -> float | None:
    """The last number, thousands separators removed."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


@METRICS.register("number_match")
def number_match(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 or 0 a row; a reference without a number counts 0."""
    pairs = [(last_number(p), last_number(r)) for p, r in zip(predictions, references, strict=True)]
    return [float(p is not None and p == r) for p, r in pairs]
