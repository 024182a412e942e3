"""The model does not produce the stop token, though the answers of the data end."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import STOP_FAIL, STOP_WARN


@DIAGNOSES.register("never_stops")
@rank(110)
def never_stops(facts: Facts) -> Finding:
    """Compares with the base: where the untuned base hardly ever stops either, it is no fault of the adapter, unless
    the rows that were trained do not hold the stop token."""
    if not facts.answers_expected or facts.stop_rate is None:
        return unmeasured("never_stops", "the rows have no answers to generate")
    value = facts.stop_rate
    shown = facts.stop_trained_rows
    if shown is not None and facts.rows and shown < facts.rows / 2 and value < STOP_WARN:
        said = f"only {shown} of {facts.rows} rows train the stop token; {value:.0%} of the answers end"
        advice = "train the stop token at the end of each answer (pad must not be the stop token)"
        return Finding("never_stops", "fail", value, STOP_WARN, said, advice)
    said = f"{value:.0%} of the answers end by themselves"
    if facts.base_stop_rate is not None:
        said += f" (base {facts.base_stop_rate:.0%})"
    if value >= STOP_WARN:
        return Finding("never_stops", "ok", value, STOP_WARN, said)
    advice = "train longer, or generate with a larger limit; look whether the stop token is trained"
    worse = facts.base_stop_rate is not None and facts.base_stop_rate >= STOP_WARN
    status = "fail" if value <= STOP_FAIL and worse else "warn"
    return Finding("never_stops", status, value, STOP_WARN, said, advice)  # type: ignore[arg-type]
