"""Diagnose an adapted model: measure on a fixed probe set, judge by every registered diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.core.events import Emit, silent
from luthier.core.seeding import generator
from luthier.core.types import IGNORE, Row
from luthier.health import probes
from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding, verdict

LAYER_FIELDS = (
    "activation_entropy",
    "activation_rate",
    "relative_strength",
    "weight_norm_ratio",
    "effective_rank",
    "gradient_norm",
)


@dataclass
class Health:
    """Findings and the numbers of each layer."""

    findings: list[Finding]
    layers: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """ok | warn | fail."""
        return verdict(self.findings)

    def as_json(self) -> dict[str, Any]:
        """health.json"""
        return {
            "verdict": self.verdict,
            "diagnoses": [finding.as_json() for finding in self.findings],
            "layers": self.layers,
        }


def diagnose(
    adapted: Any, rows: Sequence[Row], *, run: Mapping[str, Any] | None = None, seed: int = 0, emit: Emit = silent
) -> Health:
    """`run` holds facts of the training where there was one: events, evaluation, manifest, method, card."""
    adapted.eval()
    chosen = probe_rows(rows, seed)
    facts: dict[str, Any] = {**(run or {}), **measure(adapted, chosen)}
    findings = []
    for name in DIAGNOSES.names():
        finding = DIAGNOSES.get(name)(facts)
        if finding is not None:
            findings.append(finding)
            if finding.status != "ok":
                emit("diagnosis", name=name, status=finding.status, evidence=finding.evidence, advice=finding.advice)
    layers = [{key: layer.get(key) for key in ("name", *LAYER_FIELDS)} for layer in facts["layers"]]
    return Health(findings, layers)


def probe_rows(rows: Sequence[Row], seed: int) -> list[Row]:
    """The fixed probe set: up to 32 rows, by seed."""
    order = generator(seed, "probe").permutation(len(rows))[: probes.PROBE_ROWS]
    return [rows[int(index)] for index in np.sort(order)]


def measure(adapted: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """The facts that diagnoses judge."""
    weights = adapted.parameters_by_name()
    numbers = probes.weight_numbers(adapted.base.model)
    branch = probes.BranchProbe(adapted.base.model)
    try:
        effect = probes.effect(adapted, rows)
    finally:
        branches = branch.close()
    gradients = probes.gradient_norms(adapted, rows)
    layers = []
    for name in numbers or _grouped(gradients):
        inside = [value for weight, value in gradients.items() if name in weight]
        norm = float(np.sqrt(np.square(inside).sum())) if inside else None
        layers.append({"name": name, **numbers.get(name, {}), **branches.get(name, {}), "gradient_norm": norm})
    tokens = sum(len(row.input_ids) for row in rows)
    trained = [int((row.labels != IGNORE).sum()) for row in rows]
    facts: dict[str, Any] = {
        "effect": effect,
        "layers": layers,
        "finite": all(bool(torch.isfinite(weight).all()) for weight in weights.values()),
        "task": adapted.task.name,
        "fingerprint": adapted.base.fingerprint,
    }
    if not adapted.task.has_head:
        facts["supervised_rows"] = float(np.mean([count > 0 for count in trained])) if trained else 0.0
        facts["supervised_share"] = sum(trained) / max(1, tokens - len(rows))
    return facts


def _grouped(gradients: Mapping[str, float]) -> list[str]:
    """Module names of trained weights, for methods without low-rank parts."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in gradients))
