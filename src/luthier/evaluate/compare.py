"""Runs side by side, from their files only: what differs in the recipe, curves, metrics, paired tests, cost, health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from luthier.core.errors import DataError
from luthier.core.events import read_jsonl
from luthier.core.rundir import RunDir
from luthier.evaluate.overfitting import between, diagnose, from_events
from luthier.metrics import METRICS
from luthier.metrics.resample import paired
from luthier.metrics.scored import Scored, mean
from luthier.report.collect import cost

TRAIN_POINTS = 5
"""Training steps before a checkpoint whose mean loss stands beside its validation loss."""


def compare(runs: Sequence[RunDir], seed: int = 0) -> dict[str, Any]:
    """{"runs": [...], "recipe": {key: [value by run]}, "paired": [...]}; the first run is the one compared with."""
    if len(runs) < 2:
        raise DataError("a comparison needs two runs or more", remedy="luthier compare RUN RUN…, or --steps of one")
    return {
        "runs": [summary(run) for run in runs],
        "recipe": recipe_differences([_recipe(run) for run in runs]),
        "paired": [against(runs[0], run, seed) for run in runs[1:]],
    }


def checkpoints(run: RunDir, steps: Sequence[int] = ()) -> dict[str, Any]:
    """One run over time: {"checkpoints": [{"step", "validation", "train", "kept"}], "between": {…}}.

    `steps` (7, 21): converged, improving or overfit between the first and the last of them; without any, between the
    first validation and the last. A step without a validation is DataError.
    """
    train, validation = from_events(read_jsonl(run.events))
    if len(validation) < 2:
        raise DataError("this run was validated less than twice", where=str(run.path), remedy="train.evaluate_every")
    known = [step for step, _ in validation]
    if missing := [step for step in steps if step not in known]:
        said = ", ".join(map(str, known))
        raise DataError(f"there was no validation at step {missing[0]}", where="--steps", remedy=f"one of {said}")
    kept = {int(path.name.rpartition("-")[2]) for path in run.checkpoints.glob("step-*")}
    rows = []
    for step, loss in validation:
        near = [value for at, value in train if at <= step][-TRAIN_POINTS:]
        rows.append({"step": step, "validation": loss, "train": float(np.mean(near)) if near else None})
        rows[-1]["kept"] = step in kept
    ends = sorted(steps) or [known[0], known[-1]]
    shown = [row for row in rows if not steps or row["step"] in steps]
    found = between(validation, ends[0], ends[-1])
    return {"run": run.path.name, "checkpoints": shown, "between": {"first": ends[0], "last": ends[-1], **found}}


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
        "overfitting": metrics.get("overfitting") or diagnose(train, validation).as_json(),
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
