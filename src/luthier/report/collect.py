"""Collects what a report tells, from the files of a run directory only. A missing file is an empty part.

Every text that came from data, models or the environment is redacted (no secret, no home path) on the way in.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from luthier.core.events import read_jsonl
from luthier.core.redact import redact
from luthier.core.rundir import RunDir

MOST_POINTS = 2000
"""Training points that are kept for the curve; more are thinned evenly, the last one always stays."""
MOST_SAMPLES = 24
MOST_PREVIEW = 12_000


@dataclass
class Facts:
    """All parts of a report as plain JSON values."""

    name: str
    status: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    spikes: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    health: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    preview: str = ""
    cost: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    lineage: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Of every stage before the last: number, task, window, steps, losses."""
    window: dict[str, Any] = field(default_factory=dict)
    """Loss by position and passkeys of a run with a longer window."""
    unreadable: list[str] = field(default_factory=list)
    """Files that exist and could not be read."""

    def as_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        return asdict(self)


def collect(run: RunDir) -> Facts:
    """Read a run directory in whatever state it is."""
    unreadable: list[str] = []
    events = clean(read_jsonl(run.events))
    kinds = _by_kind(events)
    return Facts(
        name=clean(run.path.resolve().name),
        status=_json(run.status, {}, unreadable),
        recipe=_yaml(run.resolved, unreadable),
        recipe_text=_text(run.resolved, MOST_PREVIEW),
        curves=curves(events),
        start=(kinds.get("start") or [{}])[-1],
        finished=(kinds.get("finished") or kinds.get("early_stop") or [{}])[-1],
        warnings=kinds.get("warning", []),
        spikes=kinds.get("spike", []),
        metrics=_json(run.metrics, {}, unreadable),
        samples=clean(_lines(run.samples))[:MOST_SAMPLES],
        health=_json(run.health, {}, unreadable),
        data=_without_ids(_json(run.manifest, {}, unreadable)),
        preview=_text(run.preview, MOST_PREVIEW),
        cost=cost(run, events),
        environment=_json(run.environment, {}, unreadable),
        lineage=clean(_lines(run.lineage)),
        stages=stages(run),
        window=_json(run.window, {}, unreadable),
        unreadable=unreadable,
    )


def stages(run: RunDir) -> list[dict[str, Any]]:
    """What the stages before the last did, from their own folders."""
    found = []
    for folder in sorted((run.path / "stages").glob("*"), key=lambda path: (len(path.name), path.name)):
        inner = RunDir(folder)
        status, drawn = inner.read(inner.status) or {}, curves(read_jsonl(inner.events))
        validation = [point["loss"] for point in drawn["validation"] if point.get("loss") is not None]
        found.append(
            {
                "number": status.get("number"),
                "state": status.get("state"),
                "task": status.get("task"),
                "window": (status.get("context") or {}).get("to"),
                "method": (status.get("context") or {}).get("method"),
                "max_length": status.get("max_length"),
                "steps": status.get("step"),
                "tokens": status.get("tokens"),
                "first_loss": validation[0] if validation else None,
                "best_loss": min(validation) if validation else None,
            }
        )
    return clean(found)


def curves(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Training and validation points, both over optimizer steps; a step that was logged twice counts once."""
    train = _per_step(events, "train", ("epoch", "loss", "lr", "grad_norm", "tokens_per_s", "memory_mb"))
    measured = {key for event in events if event.get("kind") == "validate" for key in event}
    names = sorted(measured - {"kind", "time", "step"})
    return {"train": _thin(train), "validation": _per_step(events, "validate", names)}


def _per_step(events: list[dict[str, Any]], kind: str, names: Any) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.get("kind") == kind and number(event.get("step")) is not None:
            values = {name: number(event.get(name)) for name in names}
            known = {name: value for name, value in values.items() if value is not None}
            found[int(event["step"])] = {"step": int(event["step"]), **known}
    return [found[step] for step in sorted(found)]


def _thin(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(points) <= MOST_POINTS:
        return points
    stride = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def cost(run: RunDir, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Trained weights, time, tokens, memory, disk. Seconds count the training steps only, wall_seconds everything."""
    train = [event for event in events if event.get("kind") == "train"]
    seconds = sum(number(event.get("seconds")) or 0.0 for event in train)
    tokens = sum(number(event.get("tokens")) or 0.0 for event in train)
    times = [value for event in events if (value := number(event.get("time"))) is not None]
    memory = [value for event in train if (value := number(event.get("memory_mb"))) is not None]
    start = next((event for event in events if event.get("kind") == "start"), {})
    return {
        "trainable": number(start.get("trainable")),
        "share": number(start.get("share")),
        "steps": len({event.get("step") for event in train}),
        "seconds": round(seconds, 2),
        "wall_seconds": round(max(times) - min(times), 2) if times else 0.0,
        "tokens": int(tokens),
        "supervised_tokens": int(sum(number(event.get("supervised_tokens")) or 0 for event in train)),
        "tokens_per_s": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_mb": max(memory) if memory else None,
        "adapter_bytes": folder_bytes(run.adapter, ".safetensors"),
        "checkpoint_bytes": folder_bytes(run.checkpoints),
    }


def folder_bytes(folder: Path, suffix: str = "") -> int:
    """Bytes of the files below a folder, 0 where it does not exist."""
    found = folder.rglob(f"*{suffix}") if folder.is_dir() else iter(())
    return sum(path.stat().st_size for path in found if path.is_file() and not path.is_symlink())


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def clean(value: Any) -> Any:
    """`value` without secrets and home paths, and with every non-finite number as None (so that it is JSON)."""
    return json.loads(redact(json.dumps(value, ensure_ascii=False)), parse_constant=lambda name: None)


def _without_ids(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest without the ids of every row of every split: they stay in data/manifest.json."""
    split = manifest.get("split")
    if isinstance(split, dict):
        manifest["split"] = {key: value for key, value in split.items() if key != "ids"}
    return manifest


def _by_kind(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        found.setdefault(str(event.get("kind")), []).append(event)
    return found


def _json(path: Path, default: Any, unreadable: list[str]) -> Any:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError):
        unreadable.append(path.name)
        return default
    if not isinstance(found, type(default)):
        unreadable.append(path.name)
        return default
    return clean(found)


def _yaml(path: Path, unreadable: list[str]) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError):
        unreadable.append(path.name)
        return {}
    return clean(found) if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(path) if isinstance(record, dict)]


def _text(path: Path, most: int) -> str:
    if not path.is_file():
        return ""
    text = path.read_bytes()[: most + 1].decode("utf-8", "replace")
    return redact(text if len(text) <= most else text[:most].rstrip() + "\n…")
