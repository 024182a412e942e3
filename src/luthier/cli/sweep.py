"""A grid of runs, each in its own process, and their comparison. The same command continues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
    settings: Annotated[list[str], typer.Argument(metavar="key.path=v1,v2…", help="Every combination is run.")],
    engine: Annotated[str, typer.Option(help="local | ray")] = "local",
    parallel: Annotated[int, typer.Option(min=1, help="Runs at once; the cores are shared out.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each run (default: cores / parallel).")] = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="Directory of the sweep (default: in runs/).")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """See the module."""
    import psutil

    from luthier.cli.console import err, json_out, safe
    from luthier.core.errors import RecipeError
    from luthier.sweep import engines
    from luthier.sweep.grid import points
    from luthier.sweep.plan import open_plan
    from luthier.sweep.result import exit_code, result

    engines.check(engine)
    if not recipe.is_file():
        raise RecipeError(f"there is no file {recipe}", where=str(recipe))
    grid = points(recipe, settings)
    each = threads or max(1, (psutil.cpu_count(logical=False) or 1) // parallel)
    plan = open_plan(recipe, grid, folder, each)
    left = [point for point in grid if not plan.finished(point)]
    err().print(safe(f"{len(grid)} runs, {len(left)} to do, {parallel} at once, {plan.threads} threads each"))

    def told(point: Any, code: int) -> None:
        where = "" if code in (0, 1) else f" (see {plan.log(point)})"
        err().print(safe(f"{point.name}  {' '.join(point.overrides)}  → exit {code}{where}"))

    codes = engines.run_all(engine, plan, left, parallel, told)
    found = result(plan, codes)
    if json:
        json_out(found)
    else:
        show(found)
    return exit_code(plan, codes)


def show(found: dict[str, Any]) -> None:
    """The ranking, then what `luthier compare` shows."""
    from luthier.cli.compare import show_comparison
    from luthier.cli.console import out, safe, table

    lines = found["points"]
    keys = list(dict.fromkeys(key for line in lines for key in line["settings"]))
    metrics = list(dict.fromkeys(key for line in lines for key in line["tuned"]))[:4]
    table(
        (*keys, "validation", *metrics, "health", "state", "run"),
        [
            (
                *(line["settings"].get(key) for key in keys),
                line["validation_loss"],
                *(line["tuned"].get(metric) for metric in metrics),
                line["health"],
                line["state"],
                Path(line["run"]).name,
            )
            for line in lines
        ],
        "ordered by validation loss; metrics are of the held-out rows",
    )
    if found["comparison"]:
        show_comparison(found["comparison"])
        if found["tests"] > 1:
            share = 0.05 * found["tests"]
            out().print(safe(f"{found['tests']} tests: by chance alone {share:.2g} of them would have p < 0.05"))
    out().print(safe(found["sweep"]))
