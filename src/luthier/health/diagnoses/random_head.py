"""The task head is as it was made: it was not trained, or not saved."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import HEAD_MOVED


@DIAGNOSES.register("random_head")
@rank(70)
def random_head(facts: Facts) -> Finding:
    """Relative change of the head from its random start; the start hangs on the seed only, so a reload shows it."""
    if not facts.has_head:
        return unmeasured("random_head", "the task has no head")
    value = facts.head_change or 0.0
    said = f"the head moved by {value:.2g} of its size"
    if value > HEAD_MOVED:
        return Finding("random_head", "ok", value, HEAD_MOVED, said)
    advice = "save the head with the adapter (PEFT: modules_to_save), or train it"
    return Finding("random_head", "fail", value, HEAD_MOVED, said + ": its weights are random", advice)
