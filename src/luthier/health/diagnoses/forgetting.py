"""General text became harder for the model than it was before tuning."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, Status, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import FORGOT_FAIL, FORGOT_WARN


@DIAGNOSES.register("forgetting")
@rank(130)
def forgetting(facts: Facts) -> Finding:
    """Relative rise of the loss on held-out general text; only where the paired interval leaves out zero."""
    base, tuned, ends = facts.general_base, facts.general_tuned, facts.general_ci
    if base is None or tuned is None or ends is None or base <= 0:
        return unmeasured("forgetting", "no general text was given (evaluate.guard)")
    value = (tuned - base) / base
    said = (
        f"loss on general text {base:.4g} → {tuned:.4g} ({value:+.1%}, 95 % interval {ends[0]:+.3g} to {ends[1]:+.3g})"
    )
    sure = ends[0] > 0
    status: Status = "ok"
    if sure and value > FORGOT_WARN:
        status = "fail" if value > FORGOT_FAIL else "warn"
    advice = "lower the learning rate or the rank, train fewer steps, or mix general text into the training data"
    limit = FORGOT_FAIL if status == "fail" else FORGOT_WARN
    return Finding("forgetting", status, value, limit, said, advice if status != "ok" else "")
