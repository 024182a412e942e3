"""A local web page over run directories: live curves, reports, samples, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7860,
    root: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("runs"),
) -> None:
    """See the module."""
    from luthier.cli.console import err, safe
    from luthier.core.errors import DataError
    from luthier.studio.server import serve

    if not root.is_dir():
        raise DataError(f"there is no folder {root}", where="--root", remedy="`luthier run RECIPE` makes one")
    serve(root, port, lambda address: err().print(safe(f"{address}  (this machine only; ctrl-C ends)")))
