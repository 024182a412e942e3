"""Where a run lives: choosing its directory, refusing a changed recipe or changed data, writing the environment."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from luthier.core import atomic, strict_yaml
from luthier.core.errors import Problem, RecipeError
from luthier.core.fingerprint import of_file
from luthier.core.redact import redact
from luthier.core.rundir import RunDir
from luthier.recipe import Recipe

LIBRARIES = ("luthier", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def choose(recipe: Recipe, run_dir: str | Path | None, root: Path | None = None) -> RunDir:
    """The named directory; else the newest run of this very recipe that goes on (one that failed, on a full disk say,
    if it has a checkpoint) or that is finished on the data as it is now; else a new one under `runs/`."""
    if run_dir is not None:
        path = Path(run_dir)
        if path.is_dir() and not RunDir(path).resolved.is_file() and not _hardly_begun(path):
            raise RecipeError(
                f"{path} is not empty and no run of luthier", where="--run-dir", remedy="name a new folder"
            )
        return RunDir(path)
    root = root or Path("runs")
    key = recipe.fingerprint()[:8]
    for folder in sorted(root.glob(f"*-{key}"), reverse=True):
        run = RunDir(folder)
        if run.state in ("running", "interrupted") or (run.state == "failed" and run.has_checkpoints):
            return run
        if run.state == "finished" and _on_the_same_data(run):
            return run
    method = recipe.method if isinstance(recipe.method, str) else str(recipe.method.get("name"))
    model = re.sub(r"[^A-Za-z0-9._]+", "_", Path(recipe.model.path).name)[:40]
    return RunDir(root / f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{method}-{key}")


def _hardly_begun(path: Path) -> bool:
    """Empty, or a run that was killed before its recipe was on disk: only what `begin` makes first is there."""
    names = {name for name in os.listdir(path) if not name.startswith(atomic.STAGING_PREFIX)}
    run = RunDir(path)
    return not names or (run.lock.name in names and names <= {run.lock.name, run.recipe.name})


def _on_the_same_data(run: RunDir) -> bool:
    sources = (run.read(run.manifest) or {}).get("sources", ())
    return all(Path(one["path"]).is_file() and of_file(Path(one["path"])) == one["sha256"] for one in sources)


def begin(run: RunDir, recipe: Recipe, source: Path | None, accept: bool = False) -> bool:
    """Write the recipe into a new directory, or make sure that an old one is of the same recipe.

    Returns whether the directory already held a run. RecipeError shows what differs.
    """
    known = run.resolved.is_file()
    if known:
        old = Recipe.parse(run.resolved.read_text("utf-8"))
        changed = differences(old.result_relevant(), recipe.result_relevant())
        if changed and not accept:
            raise RecipeError(
                "this run directory was made by another recipe",
                problems=[
                    Problem(
                        f"was {before!r}, is now {after!r}",
                        where=key,
                        remedy="undo it, take a new --run-dir, or --accept-changes",
                    )
                    for key, (before, after) in changed.items()
                ],
            )
        if changed:
            _record_lineage(run, {"recipe": {key: list(pair) for key, pair in changed.items()}})
            atomic.write_text(run.resolved, recipe.dump())
    else:
        run.path.mkdir(parents=True, exist_ok=True)
        text = source.read_text("utf-8-sig") if source else recipe.dump()
        atomic.write_text(run.recipe, text)
        atomic.write_text(run.resolved, recipe.dump())
    return known


def same_data(run: RunDir, sources: Mapping[str, str], accept: bool = False) -> None:
    """Refuse to continue on data files whose sha256 differs from the one in the manifest."""
    manifest = run.read(run.manifest) or {}
    before = {item["path"]: item["sha256"] for item in manifest.get("sources", ())}
    changed = {path: (old, sources.get(path, "absent")) for path, old in before.items() if sources.get(path) != old}
    if changed and not accept:
        raise RecipeError(
            "the data changed since this run began",
            problems=[
                Problem(f"sha256 was {old[:12]}…, is now {new[:12]}…", path, "restore it, or --accept-data-change")
                for path, (old, new) in changed.items()
            ],
        )
    if changed:
        _record_lineage(run, {"data": {path: list(pair) for path, pair in changed.items()}})


def _record_lineage(run: RunDir, change: dict[str, Any]) -> None:
    lines = run.lineage.read_text("utf-8") if run.lineage.is_file() else ""
    record = strict_json({"time": round(time.time(), 1), **change})
    atomic.write_text(run.lineage, f"{lines}{record}\n")


def strict_json(value: Any) -> str:
    """One line of JSON."""
    import json

    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """key path → (old, new) for everything that is not equal."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*old, *new]):
            found |= differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))
        return found
    return {} if old == new else {path: (old, new)}


def environment(recipe: Recipe, base: Any, sources: Mapping[str, str], threads: int) -> dict[str, Any]:
    """environment.json: what would have to be equal for an equal result."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "seed": recipe.seed,
        "split_seed": recipe.data.split.seed,
        "command": [Path(sys.argv[0]).name, *map(redact, sys.argv[1:])],
        "base": {"path": recipe.model.path, "fingerprint": base.fingerprint},
        "data": dict(sources),
        "recipe": recipe.fingerprint(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def reopen(run: RunDir) -> Recipe:
    """The resolved recipe of a run directory."""
    return Recipe.build(strict_yaml.load(run.resolved.read_text("utf-8"), name=str(run.resolved)))
