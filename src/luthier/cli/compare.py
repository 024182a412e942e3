"""Runs side by side: recipe, results, paired tests on the same rows, cost; or the checkpoints of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; the first is compared with.")],
    steps: Annotated[str | None, typer.Option(help="Of one run: 7,21 tells converged from overfit.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See the module."""
    from luthier.cli.console import json_out
    from luthier.core.rundir import RunDir
    from luthier.evaluate.compare import checkpoints, compare

    if len(runs) == 1 and steps is not None:
        over_time = checkpoints(RunDir.open(runs[0]), _steps(steps))
        json_out(over_time) if json else show_checkpoints(over_time)
        return
    found = compare([RunDir.open(run) for run in runs])
    if json:
        json_out(found)
    else:
        show_comparison(found)


def _steps(given: str) -> list[int]:
    from luthier.core.errors import RecipeError

    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise RecipeError(f"{given!r} are no steps", where="--steps", remedy="numbers with commas: --steps 7,21")
    return [int(part) for part in parts]


def show_checkpoints(found: dict[str, Any]) -> None:
    """The checkpoints of one run as a table, and what happened between the two ends."""
    from rich.text import Text

    from luthier.cli.console import out, safe, table

    columns = ("step", "validation", "train", "kept")
    table(columns, [[row[name] for name in columns] for row in found["checkpoints"]])
    out().print(Text(f"{found['between']['verdict']}: ", style="bold") + safe(found["between"]["reason"]))


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
    lines.append(("trained weights", *(_trained(run["cost"]) for run in found["runs"])))
    lines.append(("training", *(duration(run["cost"]["seconds"]) for run in found["runs"])))
    lines.append(("adapter", *(size(run["cost"]["adapter_bytes"]) for run in found["runs"])))
    table(("result", *names), lines)
    for pair in found["paired"]:
        rows = [(name, item["value"], *item["ci95"], item["p"]) for name, item in pair["metrics"].items()]
        title = f"{pair['other']} − {pair['first']}, paired on {pair['rows']} rows"
        if rows:
            table(("metric", "difference", "from", "to", "p"), rows, title)


def _trained(cost: dict[str, Any]) -> str:
    if cost["trainable"] is None:
        return "–"
    return f"{cost['trainable']:,.0f} ({100 * (cost['share'] or 0):.2f} %)"


def _short(value: Any) -> str:
    from luthier.cli.console import show

    return show(value)[:60]
