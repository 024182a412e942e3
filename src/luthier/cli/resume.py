"""Continue an unfinished run where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", "--accept-data-change", help="Continue although data changed; recorded.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    from luthier import pipeline
    from luthier.cli.finished import told
    from luthier.cli.progress import Progress

    with Progress() as progress:
        return told(lambda: pipeline.resume(run, [progress], accept_changes), progress, json)
