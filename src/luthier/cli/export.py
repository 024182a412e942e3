"""Write an artefact of a run, proved equal to what was trained, or say why that kind cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    dest: Annotated[Path, typer.Argument(help="New folder.")],
    kind: Annotated[str, typer.Option("--as", help="`luthier list exporters`")] = "adapter",
    dtype: Annotated[str, typer.Option(help="float32 | bfloat16 | float16")] = "float32",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out, out, safe, table
    from luthier.pipeline import later
    from luthier.report.render import flat

    certificate = later.export(run, dest, kind, dtype)
    if json:
        json_out({"path": str(dest), "certificate": certificate})
    else:
        table(("certificate", ""), flat(certificate))
        out().print(safe(dest))
