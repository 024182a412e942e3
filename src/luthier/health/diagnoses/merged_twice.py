"""The adapter's update is already in the base's weights."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import MERGED, SURE


@DIAGNOSES.register("merged_twice")
@rank(10)
def merged_twice(facts: Facts) -> Finding:
    """⟨W, ΔW⟩/‖ΔW‖², weighted over layers: near 0 on the base that was trained on, near 1 where ΔW was folded in.

    Fires only above MERGED and SURE standard errors: a small update says little about what is in a large weight.
    """
    known = [(one.projection, one.projection_error) for one in facts.layers]
    pairs = [(value, 1 / error**2) for value, error in known if value is not None and error]
    if not pairs or facts.inplace:
        return unmeasured("merged_twice", "no low-rank update")
    total = sum(weight for _, weight in pairs)
    value, error = sum(value * weight for value, weight in pairs) / total, total**-0.5
    said = f"the base's weights hold {value:.0%} ± {error:.0%} of the adapter's update ({len(pairs)} weights)"
    if value <= MERGED or value < SURE * error:
        return Finding("merged_twice", "ok", value, MERGED, said)
    advice = "use the merged model alone, or the adapter on the unmerged base"
    return Finding("merged_twice", "fail", value, MERGED, said, advice)
