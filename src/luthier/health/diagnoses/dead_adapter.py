"""The adapter changes nothing: its branch is zero or its output equals the base's."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import DEAD_STRENGTH


@DIAGNOSES.register("dead_adapter")
@rank(60)
def dead_adapter(facts: Facts) -> Finding:
    """Fails when no branch reaches DEAD_STRENGTH of what it is added to, and when on and off are bit-equal.

    Activation entropy is no signal here: the entropy of an all-zero branch is maximal or undefined.
    """
    strengths = [one.strength_p95 for one in facts.layers if one.strength_p95 is not None]
    known = [value for value in (max(strengths, default=None), facts.state_change) if value is not None]
    if not known and facts.effect is None:
        return unmeasured("dead_adapter", "no branch and no rows")
    value = max(known, default=facts.effect or 0.0)
    if facts.effect == 0.0:
        value = 0.0
    if value >= DEAD_STRENGTH:
        weak = sum(strength < DEAD_STRENGTH for strength in strengths)
        said = f"strongest branch {value:.3g} of what it is added to"
        said += f"; {weak} of {len(strengths)} branches are silent" if weak else ""
        return Finding("dead_adapter", "ok", value, DEAD_STRENGTH, said)
    why = "outputs with the adapter on and off are equal" if facts.effect == 0.0 else "every branch is silent"
    advice = "raise the learning rate; look whether gradients arrive (all of A and B zero can never learn)"
    return Finding("dead_adapter", "fail", value, DEAD_STRENGTH, f"{why} on {facts.rows} rows", advice)
