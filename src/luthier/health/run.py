"""From an adapted model and a few rows to health.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.events import Emit, silent
from luthier.core.seeding import generator
from luthier.core.types import Row
from luthier.health.diagnoses import DIAGNOSES, Finding
from luthier.health.facts import Facts, LayerNumbers

PROBES = 32
"""Rows that are looked at; the same for every run with the same seed and rows."""
SEVERITY = {"fail": 0, "warn": 1, "ok": 2}


@dataclass(frozen=True)
class Health:
    """The verdict with everything behind it; the worst finding stands first."""

    verdict: str
    findings: list[Finding]
    layers: list[LayerNumbers]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def top(self) -> str | None:
        """Name of the first finding that is not ok: the most likely cause."""
        return next((one.name for one in self.findings if one.status != "ok"), None)

    def as_json(self) -> dict[str, Any]:
        """health.json."""
        listed = [one.as_json() for one in self.findings]
        layers = [one.as_json() for one in self.layers]
        return {"verdict": self.verdict, "top": self.top, "diagnoses": listed, "layers": layers, **self.details}


def diagnose(
    adapted: Any,
    rows: Sequence[Row],
    *,
    run: Mapping[str, Any] | None = None,
    seed: int = 0,
    emit: Emit = silent,
) -> Health:
    """Probe and judge. `run` may hold facts that only the run knows, all optional:

    events      records of events.jsonl                 evaluation  metrics.json
    card        luthier.json as it was saved            method      the method's settings
    manifest    data/manifest.json                      general     Rows of general text (for forgetting)
    window      evaluation/window.json
    """
    from luthier.health import collect

    known = dict(run or {})
    picks = generator(seed, "health").permutation(len(rows))[:PROBES].tolist() if len(rows) else []
    facts = collect.collect(adapted, [rows[index] for index in sorted(picks)], known, seed, emit)
    return judge(facts)


def judge(facts: Facts) -> Health:
    """Every diagnosis on these facts."""
    members = [DIAGNOSES.get(name) for name in DIAGNOSES.names()]
    ranked = sorted(((member(facts), member.rank) for member in members), key=lambda f: (SEVERITY[f[0].status], f[1]))
    findings = [finding for finding, _ in ranked]
    details = {
        "rows": facts.rows,
        "gradient_norms": list(facts.gradient_norms),
        "state_change": facts.state_change,
        "effect": facts.effect,
        "prompt": facts.prompt,
        "ablation": [{"layer": layer, "cost": cost, "ci95": [low, high]} for layer, cost, low, high in facts.ablation],
    }
    return Health(findings[0].status, findings, facts.layers, details)
