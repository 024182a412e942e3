"""The base at hand is not the one that the adapter was trained on."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank
from luthier.health.facts import Facts
from luthier.health.thresholds import HARM


@DIAGNOSES.register("wrong_base")
@rank(20)
def wrong_base(facts: Facts) -> Finding:
    """By fingerprint where the adapter carries one; else by harm: an adapter that makes its own task worse."""
    wanted = (facts.expected.get("fingerprint") or {}).get("weights")
    here = (facts.found.get("fingerprint") or {}).get("weights")
    advice = "load the base that adapter_config.json or luthier.json names"
    if wanted and here:
        if wanted != here:
            said = f"weights fingerprint {str(here)[:12]} is not {str(wanted)[:12]}"
            return Finding("wrong_base", "fail", 1.0, 0.0, said, advice)
        return Finding("wrong_base", "ok", 0.0, 0.0, "the base's weights are those that the adapter was trained on")
    base, tuned, ends = facts.base_loss, facts.tuned_loss, facts.loss_change_ci
    if base is None or tuned is None or ends is None or facts.has_head:
        return Finding("wrong_base", "ok", None, None, "the adapter carries no fingerprint and there are no rows")
    value = tuned - base
    said = f"the adapter carries no fingerprint; loss {base:.4g} without it, {tuned:.4g} with it"
    if ends[0] > HARM:
        return Finding("wrong_base", "warn", value, HARM, said + ": it harms, as on a wrong base", advice)
    return Finding("wrong_base", "ok", value, HARM, said)
