"""Is this installation sound: versions, extras, device, memory, disk, fonts; each with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Option("--run-dir", help="Where runs would be written.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module. Exit 2 where something keeps luthier from working."""
    from luthier.cli.console import json_out, safe, table
    from luthier.pipeline.doctor import examine

    found = examine(folder)
    wrong = any(one["status"] == "wrong" for one in found)
    if json:
        json_out({"ok": not wrong, "findings": found})
    else:
        colours = {"ok": "green", "note": "yellow", "wrong": "bold red"}
        lines = [
            (one["what"], one["found"], safe(one["status"], colours[one["status"]]), one["remedy"]) for one in found
        ]
        table(("", "found", "", "what to do"), lines)
    return 2 if wrong else 0
