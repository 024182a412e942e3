"""What a page needs to know of the runs below a folder. Every file may be missing, torn, huge or hostile."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.rundir import RunDir
from luthier.report.headline import judge

DEEPEST, MOST_RUNS = 3, 2000
MOST_JSON, MOST_EVENTS, MOST_REPORT = 16 << 20, 1 << 20, 64 << 20
MOST_POINTS, MOST_SAMPLES, MOST_TEXT = 2000, 20, 4000
LIVE = ("tokens_per_s", "left_s", "memory_mb", "lr", "epoch", "total")


class Runs:
    """Runs by name. Names come from listing the folder, so no path is ever built from what a browser sends."""

    def __init__(self, root: Path):
        self.root = root.resolve()

    def names(self) -> dict[str, RunDir]:
        """name (relative to the root) → run, newest first. Links that lead out of the root are not followed."""
        found: dict[str, RunDir] = {}
        self._look(self.root, 0, found)
        return dict(sorted(found.items(), reverse=True))

    def _look(self, folder: Path, depth: int, found: dict[str, RunDir]) -> None:
        try:
            inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return
        for entry in inside:
            path = Path(entry.path)
            if len(found) >= MOST_RUNS or entry.name.startswith(".") or not entry.is_dir() or not self.inside(path):
                continue
            run = RunDir(path)
            if run.status.is_file() or run.resolved.is_file():
                found[str(path.relative_to(self.root))] = run
            elif depth + 1 < DEEPEST:
                self._look(path, depth + 1, found)

    def inside(self, path: Path) -> bool:
        """Whether a path, links resolved, lies below the root."""
        try:
            return path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def read_bytes(self, path: Path, most: int, start: int = 0) -> bytes:
        """Up to `most` bytes; empty for what is missing, leads out of the root, or is no plain file."""
        try:
            if not self.inside(path) or not path.is_file():
                return b""
            with open(path, "rb") as handle:
                handle.seek(start)
                return handle.read(most)
        except (OSError, ValueError):
            return b""

    def read(self, path: Path) -> dict[str, Any]:
        """A JSON object, or {}."""
        raw = self.read_bytes(path, MOST_JSON + 1)
        return parsed(raw) if len(raw) <= MOST_JSON else {}

    def card(self, name: str, run: RunDir) -> dict[str, Any]:
        """One line of the list: state, step, headline, health."""
        status, metrics = self.read(run.status), self.read(run.metrics)
        return {
            "name": name,
            "state": state_of(status),
            "step": number(status.get("step")),
            "total": number(status.get("total_steps")),
            "head": headline(metrics, str(self.task(run))),
            "health": _word(self.read(run.health).get("verdict")),
        }

    def task(self, run: RunDir) -> Any:
        """The task's name in the resolved recipe."""
        from luthier.core import strict_yaml

        raw = self.read_bytes(run.resolved, 1 << 20)
        try:
            found = strict_yaml.load(raw.decode("utf-8"), name="recipe").value.get("task", "")
        except Exception:  # any damage of a foreign file means: not known
            return ""
        return found.get("name", "") if isinstance(found, Mapping) else found

    def events(self, run: RunDir, after: int) -> dict[str, Any]:
        """What was logged after a byte: {"train": [[step, loss]], "validation", "warnings", "live", "offset"}."""
        raw = self.read_bytes(run.events, MOST_EVENTS, after)
        whole = raw.rfind(b"\n") + 1
        made: dict[str, Any] = {"train": [], "validation": [], "warnings": [], "live": {}}
        for line in raw[:whole].split(b"\n"):
            _note(made, parsed(line))
        made["offset"] = after + (whole or (len(raw) if len(raw) == MOST_EVENTS else 0))
        made["more"] = len(raw) == MOST_EVENTS
        made["state"] = state_of(self.read(run.status))
        return made

    def samples(self, run: RunDir) -> list[dict[str, Any]]:
        """The first samples: prompt, reference, base, tuned."""
        from luthier.report.samples import text_of

        made = []
        for line in self.read_bytes(run.samples, MOST_EVENTS).split(b"\n")[:MOST_SAMPLES]:
            if record := parsed(line):
                parts = ("prompt", "reference", "base", "tuned")
                made.append({part: text_of(record[part])[:MOST_TEXT] for part in parts if part in record})
        return made

    def report(self, run: RunDir) -> bytes:
        """report.html, or nothing."""
        return self.read_bytes(run.report_html, MOST_REPORT)


def parsed(raw: bytes) -> dict[str, Any]:
    """A JSON object, or {} for anything else."""
    try:
        found = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | int | None:
    """A finite number, or None."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return value if real and abs(value) < 1e300 and math.isfinite(value) else None


def _word(value: Any) -> str | None:
    return str(value)[:40] if isinstance(value, str) else None


def state_of(status: Mapping[str, Any]) -> str:
    """finished | running | interrupted | failed | stopped (says running, but its process is gone) | absent."""
    state = _word(status.get("state")) or "absent"
    pid = status.get("pid")
    if state == "running" and isinstance(pid, int) and not (Path("/proc") / str(abs(pid))).exists():
        return "stopped" if Path("/proc/self").exists() else state
    return state if state in ("finished", "running", "interrupted", "failed") else "absent"


def headline(metrics: dict[str, Any], task: str) -> dict[str, Any]:
    """The report's own verdict, or {"answer": "unmeasured"}."""
    try:
        return judge(metrics, task).as_json()
    except (TypeError, ValueError, KeyError, AttributeError):
        return {"answer": "unmeasured"}


def _note(made: dict[str, Any], record: Mapping[str, Any]) -> None:
    kind, step, loss = record.get("kind"), number(record.get("step")), number(record.get("loss"))
    if kind in ("train", "validate") and step is not None and loss is not None:
        made["train" if kind == "train" else "validation"].append([step, loss])
    if kind == "train":
        made["live"] = {key: number(record.get(key)) for key in LIVE if number(record.get(key)) is not None}
    if kind == "warning":
        made["warnings"].append(str(record.get("what") or record.get("text") or "")[:500])


def thin(points: list[list[float]]) -> list[list[float]]:
    """At most MOST_POINTS, evenly."""
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    return points[::step]
