"""Runs side by side, from their files only: what differs in the recipe, curves, metrics, paired tests, cost, health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from luthier.core.errors import DataError
from luthier.core.events import read_jsonl
from luthier.core.rundir import RunDir
from luthier.evaluate.overfitting import diagnose, from_events
from luthier.metrics import METRICS
from luthier.metrics.resample import paired
from luthier.metrics.scored import Scored, mean
from luthier.report.collect import cost


def compare(runs: Sequence[RunDir], seed: int = 0) -> dict[str, Any]:
    """{"runs": [...], "recipe": {key: [value by run]}, "paired": [...]}; the first run is the one compared with."""
    if len(runs) < 2:
        raise DataError("a comparison needs two runs or more", remedy="luthier compare RUN RUN…")
    return {
        "runs": [summary(run) for run in runs],
        "recipe": recipe_differences([_recipe(run) for run in runs]),
        "paired": [against(runs[0], run, seed) for run in runs[1:]],
    }


def summary(run: RunDir) -> dict[str, Any]:
    """One run: name, state, curves, metrics, overfitting, cost, health."""
    events = read_jsonl(run.events)
    train, validation = from_events(events)
    metrics, health = run.read(run.metrics) or {}, run.read(run.health) or {}
    status = run.read(run.status) or {}
    keys = ("rows", "split", "primary", "base", "tuned", "difference")
    return {
        "name": run.path.name,
        "state": run.state,
        "step": status.get("step"),
        "train": [list(point) for point in train],
        "validation": [list(point) for point in validation],
        "overfitting": diagnose(train, validation).as_json(),
        "metrics": {key: metrics[key] for key in keys if key in metrics},
        "cost": cost(run, events),
        "health": {"verdict": health.get("verdict"), "top": health.get("top")},
    }


def _recipe(run: RunDir) -> dict[str, Any]:
    if not run.resolved.is_file():
        return {}
    found = yaml.safe_load(run.resolved.read_text("utf-8"))
    return found if isinstance(found, dict) else {}


def recipe_differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """key path → the value in every recipe, for keys that are not the same in all."""
    flat = [_flat(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: [one.get(key) for one in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found[1:])}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            key: one for name, part in value.items() for key, one in _flat(part, f"{path}.{name}".strip(".")).items()
        }
    return {path: value}


def against(first: RunDir, other: RunDir, seed: int = 0) -> dict[str, Any]:
    """Paired differences other − first on the rows that both predicted; {"rows": 0} where there are none."""
    mine, theirs = ({record["id"]: record for record in read_jsonl(run.predictions)} for run in (first, other))
    common = [name for name in mine if name in theirs]
    made: dict[str, Any] = {"first": first.path.name, "other": other.path.name, "rows": len(common), "metrics": {}}
    if not common:
        return made
    pairs = [(mine[name], theirs[name]) for name in common]
    first_side, other_side = ([pair[side] for pair in pairs] for side in (0, 1))
    made["metrics"]["loss"] = paired(_loss(first_side), _loss(other_side), 1000, seed)
    if all("target" in record for pair in pairs for record in pair):
        right = [[record.get("tuned") == record["target"] for record in side] for side in (first_side, other_side)]
        made["metrics"]["accuracy"] = paired(mean(right[0]), mean(right[1]), 1000, seed)
    scored = [pair for pair in pairs if "scores" in pair[0] and "scores" in pair[1]]
    for metric in scored[0][0]["scores"] if scored else ():
        kept = [pair for pair in scored if all(metric in record["scores"] for record in pair)]
        values = [[pair[side]["scores"][metric]["tuned"] for pair in kept] for side in (0, 1)]
        made["metrics"][metric] = paired(mean(values[0]), mean(values[1]), 1000, seed)
    return made


def _loss(records: Sequence[Mapping[str, Any]]) -> Scored:
    tokens = np.array([record["tokens"] for record in records], dtype=float)
    total = np.array([record["tuned_loss"] for record in records]) * tokens
    found: Scored = METRICS.get("loss")(np.stack([total, total], axis=1), tokens)
    return found
