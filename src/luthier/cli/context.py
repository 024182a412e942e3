"""Which window extension fits a model; with --text each is measured untuned and one is recommended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.core.errors import RecipeError


def command(
    model: Annotated[str, typer.Argument(help="builtin, a local folder or a hub id.")],
    to: Annotated[int, typer.Option("--to", help="The window wanted, in tokens.")],
    text: Annotated[Path | None, typer.Option(help="Your own long documents.")] = None,
    documents: Annotated[int, typer.Option(help="Windows of the documents to measure on.")] = 6,
    tasks: Annotated[Path | None, typer.Option(help="Write long-range tasks made of --text here.")] = None,
    count: Annotated[int, typer.Option(help="How many training tasks --tasks writes.")] = 200,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out, out, safe
    from luthier.cli.progress import Progress
    from luthier.core.events import Emitter
    from luthier.pipeline import windows

    if to < 2 or documents < 1 or count < 1:
        raise RecipeError("--to, --documents and --count are positive numbers", where="luthier context")
    if tasks is not None:
        if text is None:
            raise RecipeError("--tasks needs --text to hide something in", where="--tasks")
        written = windows.write_tasks(model, to, str(text), tasks, count)
        if json:
            json_out({"written": [str(path) for path in written]})
        else:
            out().print(safe("\n".join(str(path) for path in written)))
        return
    with Progress() as progress:
        found = windows.compare(model, to, str(text) if text else None, documents, Emitter(progress))
    if json:
        json_out(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from luthier.cli.console import out, safe, table

    out().print(safe(f"window {found['window']} → {found['target']}, {found['family']} positions"))
    edges = list((found["methods"][0].get("loss_by_bucket") or {}) if found["methods"] else {})
    truncated = (found.get("baselines") or {}).get("truncated") or {}
    edges = list(truncated) or edges
    rows = [
        (one["name"], *((one["loss_by_bucket"] or {}).get(edge) for edge in edges), one.get("loss"), one["passkey"])
        for one in found["methods"]
    ]
    if truncated:
        rows.append(("own window only", *(truncated[edge] for edge in edges), None, None))
    table(("method", *edges, "all", "passkey"), rows, "loss by position, untuned" if truncated else "methods that fit")
    for name, reason in (found.get("refused") or {}).items():
        out().print(safe(f"{name}: {reason}", "dim"))
    if found["recommended"]:
        out().print(safe(f"recommended: {found['recommended']} ({found['reason']})"))
    else:
        out().print(safe(str(found["reason"])))
