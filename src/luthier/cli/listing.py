"""What there is: methods, formats, templates, tasks, metrics, models, runs and the other families, one line each."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.core.errors import RecipeError

FAMILIES = {
    "methods": ("luthier.methods", "METHODS"),
    "formats": ("luthier.data.formats", "FORMATS"),
    "templates": ("luthier.data.templates", "TEMPLATES"),
    "augmenters": ("luthier.data.augment", "AUGMENTERS"),
    "contexts": ("luthier.context", "CONTEXTS"),
    "tasks": ("luthier.tasks", "TASKS"),
    "metrics": ("luthier.metrics", "METRICS"),
    "diagnoses": ("luthier.health.diagnoses", "DIAGNOSES"),
    "exporters": ("luthier.export", "EXPORTERS"),
}
OTHERS = ("models", "runs")


def command(
    what: Annotated[str | None, typer.Argument(help=" | ".join((*FAMILIES, *OTHERS)))] = None,
    root: Annotated[Path, typer.Option(help="Where runs are looked for.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out, table

    if what is None:
        overview(json)
        return
    if what in FAMILIES:
        found = family(what).summaries()
        if json:
            json_out({what: found})
        else:
            table((what, ""), found.items())
        return
    if what not in OTHERS:
        import difflib

        close = difflib.get_close_matches(what, (*FAMILIES, *OTHERS), 1)
        known = ", ".join((*FAMILIES, *OTHERS))
        raise RecipeError(
            f"there is no list of {what!r}", remedy=f"did you mean {close[0]}?" if close else f"known: {known}"
        )
    records = models() if what == "models" else runs(root)
    if json:
        json_out({what: records})
    elif records:
        table(tuple(records[0]), [tuple(record.values()) for record in records])
    else:
        table((what,), [("none",)])


def overview(json: bool) -> None:
    """Every list with the names in it."""
    from luthier.cli.console import json_out, table

    names = {what: list(family(what).summaries()) for what in FAMILIES}
    if json:
        json_out(names)
    else:
        table(("luthier list …", ""), [(what, ", ".join(found)) for what, found in names.items()])


def family(what: str) -> Any:
    """The family behind a word."""
    package, name = FAMILIES[what]
    return getattr(importlib.import_module(package), name)


def models() -> list[dict[str, Any]]:
    """Built-in bases, and what lies in the local hub cache. No network."""
    import os

    found = [{"name": "builtin", "where": "in the package"}]
    home = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub"
    for folder in sorted(Path(home).glob("models--*")):
        found.append({"name": folder.name.removeprefix("models--").replace("--", "/"), "where": "local hub cache"})
    return found


def runs(root: Path) -> list[dict[str, Any]]:
    """Run directories below `root` with state and headline numbers, newest first."""
    from luthier.core.rundir import RunDir

    records = []
    for folder in sorted(root.glob("*"), reverse=True):
        run = RunDir(folder)
        if not run.status.is_file():
            continue
        metrics = _object(run, run.metrics)
        health = _object(run, run.health)
        status = _object(run, run.status)
        records.append(
            {
                "run": str(folder),
                "state": status.get("state"),
                "step": status.get("step"),
                "base_loss": (metrics.get("base") or {}).get("loss"),
                "tuned_loss": (metrics.get("tuned") or {}).get("loss"),
                "health": health.get("verdict"),
            }
        )
    return records


def _object(run: Any, path: Path) -> dict[str, Any]:
    try:
        found = run.read(path, {})
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
