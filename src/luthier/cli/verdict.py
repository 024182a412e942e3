"""Ship or not: a gain beyond chance and noise, nothing forgotten, healthy, and the very files that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    guard: Annotated[list[Path] | None, typer.Option(help="Text that must not be forgotten; may be repeated.")] = None,
    margin: Annotated[float, typer.Option(min=0.0, help="Largest relative rise of the loss on a guard set.")] = 0.05,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    from rich.text import Text

    from luthier.cli.console import json_out, out, safe
    from luthier.core.errors import DataError
    from luthier.core.rundir import RunDir
    from luthier.evaluate.verdict import verdict
    from luthier.pipeline import evidence

    place = RunDir.open(run)
    metrics = place.read(place.metrics)
    if metrics is None:
        raise DataError("this run was not measured", where=str(run), remedy=f"luthier evaluate {run}")
    guards = {**(metrics.get("guards") or {}), **(_measured(run, guard) if guard else {})}
    recorded, now = metrics.get("evidence") or {}, evidence.hashes(place)
    found = verdict(metrics, place.read(place.health) or {}, guards, recorded, now, margin)
    if json:
        json_out(found)
    else:
        out().print(Text("ship", style="bold green") if found["ship"] else Text("do not ship", style="bold red"))
        for reason in found["reasons"]:
            out().print(Text("  ") + safe(reason))
    return 0 if found["ship"] else 1


def _measured(run: Path, files: list[Path]) -> dict[str, dict[str, object]]:
    from luthier.evaluate import guards
    from luthier.pipeline import later

    _, recipe, adapted, _ = later.reload(run)
    settings = recipe.evaluate
    return guards.measure(
        adapted,
        [str(file) for file in files],
        batch_tokens=settings.batch_tokens,
        resamples=settings.bootstrap,
        seed=recipe.seed,
    )
