"""Write the report of a run again, from the files of its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out, out, safe
    from luthier.core.rundir import RunDir
    from luthier.report.write import write

    page = write(RunDir.open(run))
    if json:
        json_out({"report": str(page)})
    else:
        out().print(safe(page))
