"""Is the adapter alive, sane and the right one? Every diagnosis with number, threshold, evidence and advice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    from luthier.cli.console import json_out
    from luthier.cli.progress import Progress
    from luthier.cli.tables import diagnoses
    from luthier.pipeline import later

    with Progress() as progress:
        found = later.health(run, [progress])
    if json:
        json_out(found)
    else:
        diagnoses(found)
    return 1 if found.get("verdict") == "fail" else 0
