"""The model's window extension is not the one that the adapter was trained with."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts


@DIAGNOSES.register("context_mismatch")
@rank(25)
def context_mismatch(facts: Facts) -> Finding:
    """Compares the adapter's stored plan with the plan of the model at hand."""
    if "context" not in facts.expected:
        return unmeasured("context_mismatch", "the adapter has no luthier.json")
    wanted, here = facts.expected.get("context") or {}, facts.found.get("context") or {}
    if wanted == here:
        said = f"{_named(wanted)}, as in training"
        return Finding("context_mismatch", "ok", 0.0, 0.0, said)
    said = f"trained with {_named(wanted)}, loaded with {_named(here)}"
    advice = "load the base with the context block of luthier.json"
    return Finding("context_mismatch", "fail", 1.0, 0.0, said, advice)


def _named(plan: dict[str, object]) -> str:
    return str(plan.get("method") or plan.get("name") or plan) if plan else "no extension"
