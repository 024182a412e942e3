"""Is the adapter alive, sane and the right one? Every diagnosis with number, threshold, evidence and advice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.core.errors import RecipeError


def command(
    run: Annotated[Path | None, typer.Argument(help="Run directory, or an adapter folder (PEFT's format).")] = None,
    base: Annotated[str | None, typer.Option(help="Base model of an adapter folder.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rows that an adapter folder is looked at with.")] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Plant every fault on a small model and show the confusion matrix.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    if selftest:
        return _selftest(json)
    if run is None:
        raise RecipeError("health of which run?", remedy="luthier health RUN, or luthier health --selftest")
    from luthier.cli.console import json_out
    from luthier.cli.progress import Progress
    from luthier.cli.tables import diagnoses
    from luthier.pipeline import foreign, later

    with Progress() as progress:
        if foreign.is_adapter(run):
            judged = foreign.bring(run, base, str(data) if data else None)
            found = foreign.health(judged, [progress])
        elif base or data:
            raise RecipeError(f"{run} is a run and knows its base and rows", remedy="leave --base and --data out")
        else:
            found = later.health(run, [progress])
    if json:
        json_out(found)
    else:
        diagnoses(found)
    return 1 if found.get("verdict") == "fail" else 0


def _selftest(json: bool) -> int:
    from luthier.cli.console import err, json_out, out, safe, table
    from luthier.core.events import Emitter
    from luthier.health import selftest as room

    def listen(record: dict[str, Any]) -> None:
        if record["kind"] == "selftest":
            what = record.get("planted") or f"{record.get('healthy')}, seed {record.get('seed')}"
            err().print(safe(f"{what}: {record.get('top') or record.get('verdict')}", "dim"))

    found = room.selftest(Emitter(listen))
    if json:
        json_out(found)
    else:
        rows = [(name, found["top"][name], ", ".join(found["confusion"][name])) for name in found["planted"]]
        table(("planted", "top diagnosis", "all that fired"), rows)
        out().print(safe(f"{found['false_alarms']} false alarms in {found['healthy_runs']} healthy runs"))
    return 0 if room.passed(found) else 1
