"""Healthy runs: every method with sensible settings on the little world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.adapted import AdaptedModel
from luthier.core.types import Row
from luthier.health.plants.world import World, train

METHODS: Mapping[str, tuple[dict[str, Any], float]] = {
    "lora": ({"name": "lora", "r": 8}, 3e-3),
    "prefix": ({"name": "prefix", "length": 4}, 3e-2),
    "bottleneck": ({"name": "bottleneck", "reduction": 4}, 3e-3),
    "full": ({"name": "full"}, 5e-4),
}
"""The self-test's methods with their learning rates on a model this small."""
MORE: Mapping[str, tuple[dict[str, Any], float]] = {
    "dora": ({"name": "lora", "r": 8, "dora": True}, 3e-3),
    "prompt": ({"name": "prompt", "length": 4}, 2e-2),
    "p_tuning": ({"name": "p_tuning", "length": 4}, 5e-3),
    "ia3": ({"name": "ia3"}, 1e-2),
    "parallel": ({"name": "bottleneck", "style": "parallel", "reduction": 4}, 3e-3),
    "stack": ({"name": "stack", "preset": "mam", "length": 4, "reduction": 4}, 3e-3),
    "last_layers": ({"name": "last_layers", "count": 2}, 1e-3),
}
"""More methods for the calibration."""
STEPS = 120
ROWS = 384
GENERAL_SHARE = 1
"""One general row for so many rows of the task: without any, every method forgets the little that the base knows."""


@dataclass
class Case:
    """What `diagnose` gets."""

    adapted: AdaptedModel
    rows: Sequence[Row]
    run: dict[str, Any] = field(default_factory=dict)


def material(world: World, count: int = ROWS) -> list[Row]:
    """Training rows: the task, and some general text."""
    general = world.general(count + count // GENERAL_SHARE)[-(count // GENERAL_SHARE) :]
    return [*world.rows(count, "train"), *general]


def run(world: World, name: str, seed: int, steps: int = STEPS) -> Case:
    """A healthy run with all the facts that a run directory would hold."""
    method, rate = {**METHODS, **MORE}[name]
    adapted = world.fresh(method, seed)
    held_out = world.rows(48, "validation")
    events = train(
        adapted, material(world), lr=rate, steps=steps, seed=seed, batch=24, every=steps // 4, held_out=held_out
    )
    general = world.general(48)
    return Case(adapted, held_out, {"events": events, "card": adapted.card(), "general": general})
