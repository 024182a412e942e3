"""Rows without a trained token, or prompts that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding


@DIAGNOSES.register("labels_masked")
def labels_masked(facts: Mapping[str, Any]) -> Finding | None:
    """Share of probe rows with supervised tokens, and the share of tokens that is supervised."""
    rows = facts.get("supervised_rows")
    if rows is None:
        return None
    tokens = facts.get("supervised_share", 0.0)
    status = "fail" if rows == 0 else "warn" if rows < 0.95 else "ok"
    whole = facts.get("task") == "instruct" and tokens > 0.999
    if whole and status == "ok":
        status = "warn"
    advice = "see `luthier check`: which tokens are trained" if status != "ok" else ""
    evidence = f"{rows:.0%} of the rows have trained tokens; {tokens:.0%} of all tokens are trained"
    return Finding("labels_masked", status, rows, 0.95, evidence + (" — the prompt too" if whole else ""), advice)
