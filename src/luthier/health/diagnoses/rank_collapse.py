"""A low-rank update uses one direction only, though it has room for many."""

from __future__ import annotations

import statistics

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import COLLAPSED_RANK, ROOM_FOR_RANK, STRONG


@DIAGNOSES.register("rank_collapse")
@rank(90)
def rank_collapse(facts: Facts) -> Finding:
    """Warns when the median effective rank is under COLLAPSED_RANK where ranks of ROOM_FOR_RANK and more were given
    and the branches are strong (a weak update may well have one direction)."""
    known = [one for one in facts.layers if one.effective_rank is not None and (one.rank or 0) >= ROOM_FOR_RANK]
    strong = [one for one in known if (one.relative_strength or 0.0) > STRONG]
    if not strong:
        return unmeasured("rank_collapse", f"no strong update with rank {ROOM_FOR_RANK} or more")
    value = statistics.median(float(one.effective_rank or 0.0) for one in strong)
    said = f"median effective rank {value:.2f} of {strong[0].rank} over {len(strong)} updates"
    if value >= COLLAPSED_RANK:
        return Finding("rank_collapse", "ok", value, COLLAPSED_RANK, said)
    advice = "lower the learning rate or lengthen warm-up; a rank this small can also be had with r: 1"
    return Finding("rank_collapse", "warn", value, COLLAPSED_RANK, said, advice)
