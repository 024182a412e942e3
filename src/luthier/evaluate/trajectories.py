"""The rows behind the curve: what every training row did over time, and which rows stood behind each loss spike.

Reads rows.jsonl: {"step", "epoch", "rows": [ids], "loss": [mean of each row], "tokens": [trained tokens]}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

LINE = re.compile(r"(.+?):(\d+)")

Kind = Literal["learned", "never_learned", "forgotten", "memorised", "seen_once"]

FALLEN = 0.7
"""A row is learned when its last loss is under this share of its first one, or under the run's typical last loss."""
RISEN = 1.5
"""A learned row is forgotten when its last loss is above this multiple of its lowest one, and near its first again."""
BY_HEART = 0.1
"""Nats a token under which a row is known by heart, where most rows are not."""
SPIKE = 6.0
"""Median absolute deviations above the running median that make a spike."""
WINDOW = 25
"""Steps of the running median."""
BEHIND = 5
"""Rows that are named for a spike."""
LISTED = 10
"""Rows of a kind, and spikes, that a summary names."""


@dataclass
class Trajectory:
    """One row over time."""

    id: str
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    kind: Kind = "seen_once"

    def as_json(self) -> dict[str, Any]:
        """With its first, lowest and last loss."""
        ends = {"first": self.losses[0], "lowest": min(self.losses), "last": self.losses[-1]}
        return {"id": self.id, "kind": self.kind, "seen": len(self.losses), "tokens": self.tokens, **ends}


def trajectories(records: Iterable[Mapping[str, Any]]) -> dict[str, Trajectory]:
    """id → Trajectory, classified. A step that was logged twice (after a resume) counts once."""
    found: dict[str, Trajectory] = {}
    for record in sorted(records, key=lambda item: int(item["step"])):
        for name, loss, tokens in zip(record["rows"], record["loss"], record["tokens"], strict=True):
            if not tokens or not np.isfinite(loss):
                continue
            one = found.setdefault(str(name), Trajectory(str(name)))
            if one.steps and one.steps[-1] == record["step"]:
                continue
            one.steps.append(int(record["step"]))
            one.losses.append(float(loss))
            one.tokens = int(tokens)
    several = [one for one in found.values() if len(one.losses) > 1]
    typical = float(np.median([one.losses[-1] for one in several])) if several else 0.0
    for one in several:
        one.kind = classify(one.losses, typical)
    return found


def classify(losses: Sequence[float], typical: float) -> Kind:
    """`typical` is the median last loss of the run."""
    first, last = losses[0], losses[-1]
    lowest = min(losses)
    learned_once = lowest < FALLEN * first
    if learned_once and last > max(RISEN * lowest, FALLEN * first):
        return "forgotten"
    if last < BY_HEART and last < FALLEN * typical:
        return "memorised"
    return "learned" if last < FALLEN * first or last <= typical else "never_learned"


def counts(found: Mapping[str, Trajectory]) -> dict[str, int]:
    """How many rows are of each kind."""
    made: dict[str, int] = {}
    for one in found.values():
        made[one.kind] = made.get(one.kind, 0) + 1
    return made


def places(ids: Iterable[str], manifest: Mapping[str, Any]) -> dict[str, str]:
    """id → file:line, from the manifest's sources; ids begin with the stem of their file and the line in it.

    Left out where two sources have the same stem, or the id says no line.
    """
    files: dict[str, list[str]] = {}
    for source in manifest.get("sources") or ():
        path = str(source["path"])
        for stem in {Path(path).stem, Path(path).name.split(".")[0]}:
            files.setdefault(stem, []).append(path)
    found = {}
    for name in ids:
        if (match := LINE.match(name)) and len(files.get(match[1], ())) == 1:
            found[name] = f"{files[match[1]][0]}:{match[2]}"
    return found


def spikes(records: Iterable[Mapping[str, Any]], sources: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """[{"step", "loss", "usual", "rows": [{"id", "loss", "share", "source"}]}]: the rows that made each spike.

    `share` is the row's part of the step's summed loss; `sources` gives file:line by row id.
    """
    ordered = sorted(records, key=lambda item: int(item["step"]))
    losses = [_mean(record) for record in ordered]
    made = []
    for index, record in enumerate(ordered):
        before = np.array(losses[max(0, index - WINDOW) : index])
        if len(before) < 5:
            continue
        usual = float(np.median(before))
        wobble = max(float(np.median(np.abs(before - usual))), 0.01 * usual, 1e-6)
        if losses[index] > usual + SPIKE * wobble:
            rows = _behind(record, sources or {})
            made.append({"step": int(record["step"]), "loss": losses[index], "usual": usual, "rows": rows})
    return made


def _mean(record: Mapping[str, Any]) -> float:
    loss, tokens = np.array(record["loss"], dtype=float), np.array(record["tokens"], dtype=float)
    return float((loss * tokens).sum() / max(1.0, tokens.sum()))


def _behind(record: Mapping[str, Any], sources: Mapping[str, str]) -> list[dict[str, Any]]:
    loss, tokens = np.array(record["loss"], dtype=float), np.array(record["tokens"], dtype=float)
    total = max(1e-12, float((loss * tokens).sum()))
    order = np.argsort(-(loss * tokens), kind="stable")[:BEHIND]
    return [
        {
            "id": str(record["rows"][i]),
            "loss": float(loss[i]),
            "share": float(loss[i] * tokens[i] / total),
            "source": sources.get(str(record["rows"][i]), ""),
        }
        for i in order.tolist()
    ]


def summary(
    records: Sequence[Mapping[str, Any]], spiked: Sequence[Mapping[str, Any]] = (), most: int = LISTED
) -> dict[str, Any]:
    """{"counts", "never_learned", "forgotten", "memorised", "spikes"}: how many rows did what, and the first of each
    kind, those with the highest last loss first; `spiked` are the spikes that the training told itself."""
    found = trajectories(records)
    made: dict[str, Any] = {"counts": counts(found)}
    for kind in ("never_learned", "forgotten", "memorised"):
        members = sorted((one for one in found.values() if one.kind == kind), key=lambda one: -one.losses[-1])
        made[kind] = [one.as_json() for one in members[:most]]
    told = {
        int(one["step"]): {"loss": one.get("loss"), "rows": list(map(str, one.get("rows") or ()))} for one in spiked
    }
    later = {one["step"]: {"loss": one["loss"], "rows": [row["id"] for row in one["rows"]]} for one in spikes(records)}
    listed = [{"step": step, **one} for step, one in {**later, **told}.items()]
    made["spikes"] = sorted(listed, key=lambda one: -float(one["loss"] or 0.0))[:most]
    return made
