"""Answers run to the limit: the stop token was not learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding

WARN, FAIL = 0.5, 0.02
FEW = 50
"""Answers below which a missing stop is only a warning."""


@DIAGNOSES.register("never_stops")
def never_stops(facts: Mapping[str, Any]) -> Finding | None:
    """Share of greedy answers that ended by themselves."""
    rate = ((facts.get("evaluation") or {}).get("tuned") or {}).get("stop_rate")
    if rate is None:
        return None
    rows = (facts.get("evaluation") or {}).get("generated_rows", 0)
    status = "fail" if rate < FAIL and rows >= FEW else "warn" if rate < WARN else "ok"
    return Finding(
        "never_stops",
        status,
        rate,
        WARN,
        f"{rate:.0%} of the answers ended with a stop token",
        ""
        if status == "ok"
        else "check that the stop token is trained (`luthier check`), train longer, or raise "
        "evaluate.samples.max_new_tokens",
    )
