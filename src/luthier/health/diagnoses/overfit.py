"""The validation loss rose after its minimum while the training loss kept falling; or rows are known by heart."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import OVERFIT_FAIL, OVERFIT_WARN
from luthier.report.overfitting import judge


@DIAGNOSES.register("overfit")
@rank(120)
def overfit(facts: Facts) -> Finding:
    """Warns above OVERFIT_WARN relative rise, fails above OVERFIT_FAIL. A falling loss can never fire.

    A rise that is chance by row is none. Rows that a probe of the kept weights found known by heart are a warning.
    """
    found, recorded = _by_the_curves(facts), facts.overfitting
    by_probe = recorded.get("verdict") == "memorising" and recorded.get("by", "curve") != "curve"
    if not by_probe or found.status != "ok":
        return found
    said, advice = str(recorded.get("reason")), str(recorded.get("advice"))
    return Finding("overfit", "warn", found.value, OVERFIT_WARN, said, advice)


def _by_the_curves(facts: Facts) -> Finding:
    if len(facts.validation_curve) < 3 or not facts.train_curve:
        return unmeasured("overfit", "fewer than three validations")
    found = judge(facts.train_curve, facts.validation_curve)
    best, last = found.best or 0.0, found.last or 0.0
    value = (last - best) / best if best > 0 else 0.0
    said = f"validation loss {last:.4g} at the end, {best:.4g} at its best (step {found.since})"
    if found.verdict in ("overfit", "memorising") and facts.overfitting.get("verdict") == "noisy":
        return Finding("overfit", "ok", value, OVERFIT_WARN, f"a rise within chance: {said}")
    if found.verdict not in ("overfit", "memorising") or value < OVERFIT_WARN:
        return Finding("overfit", "ok", value, OVERFIT_WARN, f"{found.verdict}: {said}")
    advice = f"stop at step {found.since} (early stopping keeps the best weights); more data, dropout, or a lower rank"
    status = "fail" if value > OVERFIT_FAIL else "warn"
    limit = OVERFIT_FAIL if status == "fail" else OVERFIT_WARN
    return Finding("overfit", status, value, limit, f"{found.verdict}: {said}", advice)  # type: ignore[arg-type]
