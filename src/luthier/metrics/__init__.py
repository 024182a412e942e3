"""FAMILY of metrics: plain functions `metric(predictions, references) -> Scored`.

`Scored.value` is the number, `Scored.rows` what the rows give to it, so that a paired bootstrap can draw rows again.
What predictions and references are depends on the metric's `kind`:

    tokens   [n, 2] summed loss and right tokens a row     [n] supervised tokens
    text     n answers                                     n reference answers
    endings  n of "stop" | "length"                        (not read)
    labels   [n, classes] shares                           [n] class indices, or [n, classes] 0/1 for several labels
    values   [n] numbers                                   [n] numbers
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from luthier.core.family import Family

METRICS = Family("metrics", __name__)

Kind = Literal["tokens", "text", "endings", "labels", "values"]


def traits(kind: Kind, higher_is_better: bool | None = True) -> Callable[[Any], Any]:
    """Decorator: what the metric reads, and which way is better (None: neither way, such as a length ratio)."""

    def note(metric: Any) -> Any:
        metric.kind, metric.higher_is_better = kind, higher_is_better
        return metric

    return note
