"""Share of answers that are valid JSON (a fenced block counts by what is in it)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored, mean

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)


@METRICS.register("json_valid")
@traits("text")
def json_valid(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 1."""
    return mean([is_json(text) for text in predictions])


def is_json(text: str) -> bool:
    """Whether the text parses; NaN and Infinity are no JSON."""
    found = _FENCE.match(text)
    try:
        json.loads(found[1] if found else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(name)
