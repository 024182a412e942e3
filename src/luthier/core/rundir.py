"""The run directory: the only place in luthier that knows its file names (CONTRACT section 4)."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core import atomic
from luthier.core.errors import DataError


@dataclass(frozen=True)
class RunDir:
    """A path with names. Nothing is created until something is written."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run directory, or DataError."""
        run = cls(Path(path))
        if not run.status.is_file() and not run.resolved.is_file():
            raise DataError(f"{path} is not a run directory", remedy="`luthier list runs` shows what there is")
        return run

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        return self.path / "recipe.resolved.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def lineage(self) -> Path:
        return self.path / "lineage.jsonl"

    @property
    def manifest(self) -> Path:
        return self.path / "data" / "manifest.json"

    @property
    def preview(self) -> Path:
        return self.path / "data" / "preview.txt"

    @property
    def canaries(self) -> Path:
        """Planted rows and their controls, where the recipe asks for them."""
        return self.path / "data" / "canaries.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def rows(self) -> Path:
        return self.path / "rows.jsonl"

    @property
    def validation_rows(self) -> Path:
        """Losses of single validation rows at every validation."""
        return self.path / "validation_rows.jsonl"

    @property
    def trunk(self) -> Path:
        """States of frozen layers, only while a run trains."""
        return self.path / "trunk.bin"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is something to go on from, in this run or in one of its stages."""
        places = [self.path, *self.path.glob("stages/*")]
        return any(True for place in places for _ in (place / self.checkpoints.name).glob("step-*"))

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def metrics(self) -> Path:
        return self.path / "evaluation" / "metrics.json"

    @property
    def window(self) -> Path:
        """Loss by position, long tasks and attention of a run with a longer window."""
        return self.path / "evaluation" / "window.json"

    @property
    def samples(self) -> Path:
        return self.path / "evaluation" / "samples.jsonl"

    @property
    def predictions(self) -> Path:
        return self.path / "evaluation" / "predictions.jsonl"

    @property
    def health(self) -> Path:
        return self.path / "health.json"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def report_html(self) -> Path:
        return self.report / "report.html"

    @property
    def report_json(self) -> Path:
        return self.report / "report.json"

    @property
    def curves(self) -> Path:
        return self.report / "curves.png"

    @property
    def window_png(self) -> Path:
        return self.report / "window.png"

    @property
    def samples_text(self) -> Path:
        return self.report / "samples.txt"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    def read(self, path: Path, default: Any = None) -> Any:
        """The JSON in one of our files, or `default` where it does not exist. DataError where it is none."""
        if not path.is_file():
            return default
        try:
            return json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError):
            raise DataError(f"{path.name} is damaged", where=str(path), remedy="restore it or delete it") from None

    def write_status(self, state: str, **fields: Any) -> None:
        """running | finished | interrupted | failed, atomically; earlier fields are kept."""
        status = {**self._status(), "state": state, "heartbeat": round(time.time(), 1)}
        atomic.write_json(self.status, {**status, "pid": os.getpid(), **fields})

    @property
    def state(self) -> str:
        """The state in status.json, or "absent"; a damaged one counts as unfinished."""
        return str(self._status().get("state", "absent"))

    def _status(self) -> dict[str, Any]:
        try:
            found = self.read(self.status)
        except DataError:
            return {"state": "running"}
        return found if isinstance(found, dict) else {}
