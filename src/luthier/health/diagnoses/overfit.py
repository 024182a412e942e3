"""The validation loss rose after its minimum while training went on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding

RISE = 0.03


@DIAGNOSES.register("overfit")
def overfit(facts: Mapping[str, Any]) -> Finding | None:
    """Rise of the last validation loss over the minimum, relative; never on a falling loss. The saved weights are
    those of the minimum, so this is a warning about the recipe, not about the artefact."""
    losses = [event["loss"] for event in facts.get("events", ()) if event.get("kind") == "validate" and "loss" in event]
    if len(losses) < 3:
        return None
    best = min(range(len(losses)), key=losses.__getitem__)
    rise = (losses[-1] - losses[best]) / max(1e-9, abs(losses[best]))
    bad = rise > RISE and best < len(losses) - 1
    return Finding(
        "overfit",
        "warn" if bad else "ok",
        rise,
        RISE,
        f"the last validation loss is {rise:+.1%} over the best one (evaluation {best} of {len(losses) - 1})",
        "train fewer epochs, lower r or the learning rate, add data or dropout; the best weights were kept"
        if bad
        else "",
    )
