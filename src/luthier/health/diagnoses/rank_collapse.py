"""A low-rank change that uses one direction only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding

LEAST = 1.05


@DIAGNOSES.register("rank_collapse")
def rank_collapse(facts: Mapping[str, Any]) -> Finding | None:
    """Median effective rank over the layers with at least 8 directions."""
    ranks = sorted(
        layer["effective_rank"]
        for layer in facts.get("layers", ())
        if layer.get("effective_rank") is not None and layer.get("rank", 0) >= 8
    )
    if not ranks:
        return None
    middle = ranks[len(ranks) // 2]
    bad = middle < LEAST
    return Finding(
        "rank_collapse",
        "warn" if bad else "ok",
        middle,
        LEAST,
        f"the median effective rank is {middle:.2f}",
        "lower train.lr at the start, raise the warm-up, or take a smaller r" if bad else "",
    )
