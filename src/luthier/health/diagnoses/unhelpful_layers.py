"""Layers whose part of the adapter harms, or that can all be switched off without harm."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import HARM_OF_LOSS, HARMFUL


@DIAGNOSES.register("unhelpful_layers")
@rank(140)
def unhelpful_layers(facts: Facts) -> Finding:
    """Warns where switching a layer off makes the task surely better (the whole interval below zero, by more than
    HARMFUL nats and HARM_OF_LOSS of the loss). Idle layers are named in the evidence: they can be pruned."""
    if len(facts.ablation) < 2:
        return unmeasured("unhelpful_layers", "fewer than two layers can be switched off")
    limit = max(HARMFUL, HARM_OF_LOSS * (facts.tuned_loss or 0.0))
    idle = [layer for layer, _, low, high in facts.ablation if low <= 0 <= high]
    harmful = [(layer, cost) for layer, cost, _, high in facts.ablation if high < 0 and -cost > limit]
    if harmful:
        worst = min(harmful, key=lambda item: item[1])
        said = f"without layer {worst[0]}'s branch the loss falls by {-worst[1]:.3g} nats"
        said += f"; harmful layers: {', '.join(str(layer) for layer, _ in harmful)}"
        advice = "leave these layers out (method.layers), lower the learning rate, or train longer"
        return Finding("unhelpful_layers", "warn", -worst[1], limit, said, advice)
    best = max(facts.ablation, key=lambda item: item[1])
    said = f"switching off one layer costs most at layer {best[0]} ({best[1]:+.3g} nats)"
    said += f"; no measurable cost at {', '.join(map(str, idle))}: they can be pruned" if idle else ""
    return Finding("unhelpful_layers", "ok", max(0.0, -min(c for _, c, _, _ in facts.ablation)), limit, said)
