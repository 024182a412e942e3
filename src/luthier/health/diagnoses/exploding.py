"""The update is larger than the weights it is added to, or numbers are no longer finite."""

from __future__ import annotations

import math

from luthier.health.diagnoses import DIAGNOSES, Finding, Status, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import BROKEN_CHANGE, EXPLODING_FAIL, EXPLODING_WARN


@DIAGNOSES.register("exploding")
@rank(80)
def exploding(facts: Facts) -> Finding:
    """‖ΔW‖/‖W‖ of the largest layer; without weights to compare, the change of the final hidden states where the
    loss went up."""
    advice = "lower the learning rate, add warm-up or clip gradients; restore an earlier checkpoint"
    broken = [one.name for one in facts.layers if not one.finite]
    if broken or not facts.finite or any(not math.isfinite(loss) for _, loss in facts.train_curve):
        said = f"values that are not finite: {', '.join(broken[:3]) or 'in the outputs or the training loss'}"
        return Finding("exploding", "fail", None, EXPLODING_FAIL, said, advice)
    ratios = {one.name: one.weight_norm_ratio for one in facts.layers if one.weight_norm_ratio is not None}
    if facts.virtual:
        return _virtual(facts, advice)
    if not ratios:
        return unmeasured("exploding", "no weight update")
    worst = max(ratios, key=lambda name: ratios[name] or 0.0)
    value = float(ratios[worst] or 0.0)
    status: Status = "fail" if value > EXPLODING_FAIL else "warn" if value > EXPLODING_WARN else "ok"
    said = f"largest update is {value:.3g} of its weight, at {worst}"
    limit = EXPLODING_FAIL if status == "fail" else EXPLODING_WARN
    return Finding("exploding", status, value, limit, said, advice if status != "ok" else "")


def _virtual(facts: Facts, advice: str) -> Finding:
    """Virtual tokens may change states much and do good: only a change that also harms the task counts."""
    value = facts.state_change
    if value is None:
        return unmeasured("exploding", "no hidden states")
    harmed = facts.loss_change_ci is not None and facts.loss_change_ci[0] > 0
    said = f"final hidden states change by {value:.3g} of their size"
    if value > BROKEN_CHANGE and harmed:
        return Finding("exploding", "fail", value, BROKEN_CHANGE, said + ", and the loss is above the base's", advice)
    return Finding("exploding", "ok", value, BROKEN_CHANGE, said)
