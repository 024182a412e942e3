"""The sweep's own directory: what is to be run, with how many threads, and what has been done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core import atomic
from luthier.core.errors import RecipeError
from luthier.core.fingerprint import of_value
from luthier.core.rundir import RunDir
from luthier.sweep.grid import Point

MANIFEST = "sweep.json"
COMPARISON = "comparison.json"


@dataclass(frozen=True)
class Plan:
    """A sweep on disk."""

    folder: Path
    recipe: Path
    points: tuple[Point, ...]
    threads: int

    def run(self, point: Point) -> RunDir:
        """The run directory of a point."""
        return RunDir(self.folder / point.name)

    def log(self, point: Point) -> Path:
        """What its process said."""
        return self.folder / f"{point.name}.log"

    def words(self, point: Point) -> list[str]:
        """What `luthier` is called with."""
        threads = [] if any(one.startswith("train.threads=") for one in point.overrides) else [self.threads]
        settings = [*point.overrides, *(f"train.threads={count}" for count in threads)]
        return ["run", str(self.recipe), *settings, "--run-dir", str(self.run(point).path), "--json"]

    def finished(self, point: Point) -> bool:
        """Whether nothing is left to do."""
        return self.run(point).state == "finished"


def open_plan(recipe: Path, points: Sequence[Point], folder: Path | None, threads: int) -> Plan:
    """A new sweep, or the one that the same recipe and grid began: then with its own number of threads."""
    key = of_value([recipe.read_text("utf-8-sig"), [point.overrides for point in points]])[:8]
    folder = folder or Path("runs") / f"sweep-{recipe.stem}-{key}"
    manifest = folder / MANIFEST
    if manifest.is_file():
        known = json.loads(manifest.read_text("utf-8"))
        if known.get("key") != key:
            raise RecipeError(
                f"{folder} holds the sweep of another recipe or grid", where=str(folder), remedy="name a new --dir"
            )
        threads = int(known["threads"])
    elif folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(f"{folder} is not empty and no sweep", where=str(folder), remedy="name a new --dir")
    else:
        facts: dict[str, Any] = {"key": key, "recipe": str(recipe), "threads": threads}
        facts["points"] = [{"run": p.name, "overrides": p.overrides} for p in points]
        atomic.write_json(manifest, facts)
    return Plan(folder, recipe, tuple(points), threads)
