"""Measure a run again: base and tuned side by side on a split or on another file, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    data: Annotated[Path | None, typer.Option(help="Another file; all its rows are used.")] = None,
    split: Annotated[str | None, typer.Option(help="train | validation | test")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out
    from luthier.cli.progress import Progress
    from luthier.cli.tables import metrics
    from luthier.pipeline import later

    with Progress() as progress:
        found = later.evaluate(run, str(data) if data else None, split, [progress])
    if json:
        json_out(found)
    else:
        metrics(found)
