"""Base and tuned side by side, with intervals: a run on a split or another file, or an adapter of any tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

TASK = "Of another tool's adapter: instruct | language_model. Of a multi-task run: whose rows --data holds."


def command(
    run: Annotated[Path, typer.Argument(help="Run directory, or an adapter folder (PEFT's format).")],
    data: Annotated[Path | None, typer.Option(help="Another file; all its rows are used.")] = None,
    split: Annotated[str | None, typer.Option(help="train | validation | test")] = None,
    base: Annotated[str | None, typer.Option(help="Base model of an adapter folder.")] = None,
    task: Annotated[str | None, typer.Option(help=TASK)] = None,
    template: Annotated[str | None, typer.Option(help="Of another tool's adapter: chat | alpaca | plain")] = None,
    harness: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness instead: names or YAML files, with commas.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each harness task.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out
    from luthier.cli.progress import Progress
    from luthier.cli.tables import metrics

    with Progress() as progress:
        if harness:
            found = _harness(run, base, harness, limit)
        else:
            found = _measure(run, data, split, base, task, template, progress)
    if json:
        json_out(found)
    else:
        metrics(found)


def _measure(
    run: Path,
    data: Path | None,
    split: str | None,
    base: str | None,
    task: str | None,
    template: str | None,
    progress: Any,
) -> dict[str, Any]:
    from luthier.core.errors import RecipeError
    from luthier.pipeline import foreign, later

    if not foreign.is_adapter(run):
        given = {"--base": base, "--task": None if data else task, "--template": template}
        if named := [name for name, value in given.items() if value]:
            raise RecipeError(f"{run} is a run and knows this itself", where=", ".join(named), remedy="leave it out")
        return later.evaluate(run, str(data) if data else None, split, [progress], task)
    if data is None:
        raise RecipeError("an adapter folder has no rows of its own", where=str(run), remedy="--data FILE")
    return foreign.evaluate(foreign.bring(run, base, str(data), task, template), [progress])


def _harness(run: Path, base: str | None, tasks: str, limit: int | None) -> dict[str, Any]:
    from luthier.evaluate import harness

    harness.need()
    from luthier.adapted import load

    return harness.measure(load(run, base), [name for name in tasks.split(",") if name], limit)
