"""The longer window is not looked into: attention stays within the old one."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import FAR_MASS


@DIAGNOSES.register("window_unused")
@rank(135)
def window_unused(facts: Facts) -> Finding:
    """Warns where the attention that goes farther back than the old window is below FAR_MASS (mean over heads, of
    tokens that have something so far back); evenly spread attention is named beside it."""
    if facts.far_mass is None:
        return unmeasured("window_unused", "no longer window, or no row reaches beyond the old one")
    even = "" if facts.even_mass is None else f"; evenly spread it would be {facts.even_mass:.3g}"
    said = f"{facts.far_mass:.3g} of the attention looks beyond the old window{even}"
    if facts.far_mass >= FAR_MASS:
        return Finding("window_unused", "ok", facts.far_mass, FAR_MASS, said)
    advice = "train on documents that need what stands far back; look whether the base has a sliding window"
    return Finding("window_unused", "warn", facts.far_mass, FAR_MASS, said, advice)
