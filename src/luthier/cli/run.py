"""Train, measure, diagnose and report, as a recipe says. The same command continues an unfinished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key.path=value", help="Settings.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Directory of the run (default: a new one in runs/).")] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            "--accept-data-change",
            help="Continue although recipe or data changed; recorded in the lineage.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    from luthier.cli.finished import told
    from luthier.cli.progress import Progress
    from luthier.recipe import Recipe

    parsed = Recipe.load(recipe, *(overrides or ()))
    from luthier import pipeline

    with Progress() as progress:
        return told(
            lambda: pipeline.run(
                parsed, run_dir, [progress], source=None if overrides else recipe, accept_changes=accept_changes
            ),
            progress,
            json,
        )
