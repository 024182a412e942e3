"""Runs side by side: what differs in the recipe, what came out, paired tests on the same rows, cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="Two run directories or more; the first is compared with.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out
    from luthier.core.rundir import RunDir
    from luthier.evaluate.compare import compare

    found = compare([RunDir.open(run) for run in runs])
    if json:
        json_out(found)
    else:
        show_comparison(found)


def show_comparison(found: dict[str, Any]) -> None:
    """The comparison as tables."""
    from luthier.cli.console import table
    from luthier.report.words import duration, size

    names = [run["name"] for run in found["runs"]]
    if found["recipe"]:
        table(("recipe", *names), [(key, *map(_short, values)) for key, values in found["recipe"].items()])
    metrics = dict.fromkeys(key for run in found["runs"] for key in run["metrics"].get("tuned", {}))
    lines: list[tuple[Any, ...]] = [("state", *(run["state"] for run in found["runs"]))]
    for metric in metrics:
        lines.append((metric, *(run["metrics"].get("tuned", {}).get(metric) for run in found["runs"])))
    lines.append(("overfitting", *(run["overfitting"]["verdict"] for run in found["runs"])))
    lines.append(("health", *(run["health"]["verdict"] for run in found["runs"])))
    lines.append(("training", *(duration(run["cost"]["seconds"]) for run in found["runs"])))
    lines.append(("adapter", *(size(run["cost"]["adapter_bytes"]) for run in found["runs"])))
    table(("result", *names), lines)
    for pair in found["paired"]:
        rows = [(name, item["value"], *item["ci95"], item["p"]) for name, item in pair["metrics"].items()]
        title = f"{pair['other']} − {pair['first']}, paired on {pair['rows']} rows"
        if rows:
            table(("metric", "difference", "from", "to", "p"), rows, title)


def _short(value: Any) -> str:
    from luthier.cli.console import show

    return show(value)[:60]
