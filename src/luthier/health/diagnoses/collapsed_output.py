"""All answers are alike, or one class is predicted for everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding

LARGEST_CLASS, LEAST_DISTINCT = 0.95, 0.2


@DIAGNOSES.register("collapsed_output")
def collapsed_output(facts: Mapping[str, Any]) -> Finding | None:
    """The largest share of one predicted class; distinct word pairs of answers."""
    evaluation = facts.get("evaluation") or {}
    matrix = (evaluation.get("confusion") or {}).get("matrix")
    advice = "lower train.lr, check the labels, look at the class balance"
    if matrix:
        columns, rows = [sum(column) for column in zip(*matrix, strict=True)], [sum(row) for row in matrix]
        share, true = max(columns) / max(1, sum(columns)), max(rows) / max(1, sum(rows))
        bad = share > LARGEST_CLASS and true < LARGEST_CLASS
        evidence = f"{share:.0%} of the predictions are one class ({true:.0%} of the rows are)"
        return Finding(
            "collapsed_output", "fail" if bad else "ok", share, LARGEST_CLASS, evidence, advice if bad else ""
        )
    distinct = (evaluation.get("tuned") or {}).get("distinct2")
    if distinct is None:
        return None
    bad = distinct < LEAST_DISTINCT
    evidence = f"{distinct:.0%} of the word pairs in an answer are different"
    return Finding(
        "collapsed_output", "fail" if bad else "ok", distinct, LEAST_DISTINCT, evidence, advice if bad else ""
    )
