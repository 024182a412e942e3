"""The adapter sits on no layer, or on far fewer than it should."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import FEWEST_LAYERS


@DIAGNOSES.register("wrong_targets")
@rank(50)
def wrong_targets(facts: Facts) -> Finding:
    """Fails below half of the layers that were asked for (all of the model's, where nothing was asked)."""
    if facts.covered_layers is None or not facts.model_layers:
        return unmeasured("wrong_targets", "the method does not act inside layers")
    expected = facts.expected_layers or facts.model_layers
    share = facts.covered_layers / expected
    said = f"{facts.covered_layers} of {expected} expected layers carry the method"
    if share >= FEWEST_LAYERS:
        return Finding("wrong_targets", "ok", share, FEWEST_LAYERS, said)
    advice = "check method.targets and method.layers against the layer names of this architecture"
    return Finding("wrong_targets", "fail", share, FEWEST_LAYERS, said, advice)
