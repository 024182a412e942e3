"""The adapter does nothing: its outputs are the base's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding

THRESHOLD = 1e-4


@DIAGNOSES.register("dead_adapter")
def dead_adapter(facts: Mapping[str, Any]) -> Finding | None:
    """Relative change of the hidden states by the adapter, on the probe rows."""
    effect = facts.get("effect")
    if effect is None:
        return None
    dead = effect < THRESHOLD
    return Finding(
        "dead_adapter",
        "fail" if dead else "ok",
        effect,
        THRESHOLD,
        f"the adapter changes the hidden states by {effect:.2%} (relative, median over tokens)",
        "check that its weights were trained and loaded: learning rate, targets, zero initialisation" if dead else "",
    )
