"""The change of the weights is of the size of the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding

WARN, FAIL = 2.0, 10.0
"""Calibrated on healthy runs of the built-in base, where high learning rates reach ratios near 1."""


@DIAGNOSES.register("exploding")
def exploding(facts: Mapping[str, Any]) -> Finding | None:
    """Largest ‖ΔW‖/‖W‖ over the layers, or weights that are not finite."""
    if not facts.get("finite", True):
        return Finding("exploding", "fail", None, FAIL, "a trained weight is not finite", "lower train.lr")
    ratios = [
        layer["weight_norm_ratio"] for layer in facts.get("layers", ()) if layer.get("weight_norm_ratio") is not None
    ]
    if not ratios:
        return None
    worst = max(ratios)
    status = "fail" if worst > FAIL else "warn" if worst > WARN else "ok"
    return Finding(
        "exploding",
        status,
        worst,
        WARN,
        f"the largest ‖ΔW‖/‖W‖ of a layer is {worst:.3f}",
        "" if status == "ok" else "lower train.lr or alpha, or train fewer steps",
    )
