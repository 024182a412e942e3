"""Whether the answer's last number is the reference's (GSM8K's way: `#### 18`, "$1,080.00", "18.")."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean

_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> Decimal | None:
    """The number after `####`, else the last one; thousands separators removed, full-width digits read."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text).replace("\u2212", "-").rpartition("####")[2])
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


@METRICS.register("number_match")
@traits("text")
def number_match(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1; a reference without a number counts 0."""
    pairs = [(last_number(p), last_number(r)) for p, r in zip(predictions, references, strict=True)]
    return mean([p is not None and p == r for p, r in pairs])
