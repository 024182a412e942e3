"""The rows behind the curve: what every training row's loss did, with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    spikes: Annotated[bool, typer.Option("--spikes", help="The rows behind each loss spike.")] = False,
    never_learned: Annotated[bool, typer.Option("--never-learned")] = False,
    forgotten: Annotated[bool, typer.Option("--forgotten")] = False,
    memorised: Annotated[bool, typer.Option("--memorised")] = False,
    most: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 30,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out
    from luthier.core.errors import DataError
    from luthier.core.events import read_jsonl
    from luthier.core.rundir import RunDir
    from luthier.evaluate import trajectories as room

    place = RunDir.open(run)
    records = read_jsonl(place.rows)
    if not records:
        raise DataError("no row was trained yet", where=str(place.rows), remedy=f"luthier run, or resume {run}")
    wanted = {"never_learned": never_learned, "forgotten": forgotten, "memorised": memorised}
    found = room.trajectories(records)
    kinds = {kind for kind, asked in wanted.items() if asked}
    sources = room.places({*found, *(name for one in records for name in map(str, one["rows"]))}, _manifest(place))
    chosen = [
        {**one.as_json(), "source": sources.get(one.id, "")} for one in found.values() if one.kind in kinds or not kinds
    ]
    chosen.sort(key=lambda item: -item["last"])
    result: dict[str, Any] = {"counts": room.counts(found), "spikes": room.spikes(records, sources), "rows": chosen}
    if json:
        json_out(result)
    elif spikes:
        _spikes(result["spikes"])
    else:
        _rows(result, most)


def _manifest(place: Any) -> dict[str, Any]:
    return dict(place.read(place.manifest) or {})


def _rows(result: dict[str, Any], most: int) -> None:
    from luthier.cli.console import out, safe, table

    counted = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(result["counts"].items()))
    out().print(safe(counted))
    columns = ("kind", "seen", "tokens", "first", "lowest", "last")
    rows = [[item["source"] or item["id"], *(item[name] for name in columns)] for item in result["rows"][:most]]
    table(("row", *columns), rows)
    if len(result["rows"]) > most:
        out().print(safe(f"… and {len(result['rows']) - most} more (--most)", "dim"))


def _spikes(found: list[dict[str, Any]]) -> None:
    from luthier.cli.console import out, safe, table

    if not found:
        out().print("no spikes")
    for spike in found:
        out().print(safe(f"step {spike['step']}: loss {spike['loss']:.3f}, usual {spike['usual']:.3f}", "bold"))
        table(
            ("row", "loss", "share of the step"),
            [(row["source"] or row["id"], row["loss"], row["share"]) for row in spike["rows"]],
        )
