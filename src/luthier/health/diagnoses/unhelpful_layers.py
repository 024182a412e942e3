"""Layers whose part of the adapter can be switched off without harm."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import IDLE_LAYERS


@DIAGNOSES.register("unhelpful_layers")
@rank(140)
def unhelpful_layers(facts: Facts) -> Finding:
    """Warns only when nearly all layers are idle; else the idle ones are named in the evidence (prune them)."""
    if len(facts.ablation) < 2:
        return unmeasured("unhelpful_layers", "fewer than two layers can be switched off")
    idle = [layer for layer, _, low, _ in facts.ablation if low <= 0]
    value = len(idle) / len(facts.ablation)
    best = max(facts.ablation, key=lambda item: item[1])
    said = f"switching off one layer costs most at layer {best[0]} ({best[1]:+.3g} nats)"
    said += f"; no measurable cost at {', '.join(map(str, idle))}" if idle else ""
    if value <= IDLE_LAYERS:
        return Finding("unhelpful_layers", "ok", value, IDLE_LAYERS, said)
    advice = "train fewer layers (method.layers), or train longer"
    return Finding("unhelpful_layers", "warn", value, IDLE_LAYERS, said, advice)
