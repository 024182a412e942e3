"""What is asked of a finished run, or of an adapter that another tool made: measure, diagnose, report again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core import atomic
from luthier.core.errors import RecipeError
from luthier.core.events import Emitter, Listener
from luthier.core.rundir import RunDir
from luthier.pipeline import finish, place, prepare, stages
from luthier.recipe import Recipe
from luthier.tasks import TASKS


def reload(
    run_dir: str | Path, data: str | None = None, kind: str | None = None
) -> tuple[RunDir, Recipe, Any, prepare.Data]:
    """Run, recipe, adapted model and rows. With `data`, all rows of that file stand in the test split; `kind` is
    their task of a multi-task run."""
    from luthier.adapted import load

    run = RunDir.open(run_dir)
    recipe = stages.last(place.reopen(run))
    prepare.settle_threads(recipe)
    adapted = load(run)
    task = TASKS.parse(recipe.task)
    wanted = recipe if data is None else with_test_file(recipe, data, kind)
    loaded, splits = prepare.read(wanted, task)
    rows = prepare.encode(wanted, loaded, splits, task, adapted.base, adapted.labels, adapted.problem, cache=run.cache)
    return run, recipe, adapted, rows


def with_test_file(recipe: Recipe, file: str, kind: str | None = None) -> Recipe:
    """The recipe with its test split replaced by a file, whose rows belong to the task `kind`."""
    values = recipe.model_dump(mode="json")
    values["data"]["test"] = {"path": file, "task": kind} if kind else file
    return Recipe(**values)


def evaluate(
    run_dir: str | Path,
    data: str | None = None,
    split: str | None = None,
    listeners: Sequence[Listener] = (),
    kind: str | None = None,
) -> dict[str, Any]:
    """Metrics of a run on a split or another file. Its own numbers (same data, no split) are written back.

    `kind` is the task of the file's rows in a multi-task run.
    """
    from luthier.evaluate.run import evaluate as measure

    run, recipe, adapted, rows = reload(run_dir, data, kind)
    chosen = split or ("test" if data else finish.evaluation_split(rows))
    if chosen not in rows.rows or not len(rows.rows[chosen]):
        raise RecipeError(f"there are no rows in the split {chosen!r}", remedy="train | validation | test")
    emit = Emitter(*listeners)
    if data is None and split is None:
        return finish.measure(recipe, adapted, rows, run, emit)
    found = measure(
        adapted,
        rows.rows[chosen],
        rows.examples[chosen],
        adapted.task.name,
        recipe.evaluate,
        labels=adapted.labels,
        training=rows.examples["train"],
        seed=recipe.seed,
        emit=emit,
    )
    return {**found.as_json(), "split": chosen, "data": data}


def health(run_dir: str | Path, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Diagnose a run again and write health.json."""
    run, recipe, adapted, rows = reload(run_dir)
    finish.diagnose(recipe, adapted, rows, run, run.read(run.metrics) or {}, Emitter(*listeners))
    return dict(run.read(run.health))


def rewrite_report(run_dir: str | Path) -> Path:
    """Write the report of a run again from its files."""
    from luthier.report.write import write

    return write(RunDir.open(run_dir))


def forget_cache(run: RunDir) -> None:
    """Remove the encoded rows of a run (they are made again when needed)."""
    import shutil

    shutil.rmtree(run.cache, ignore_errors=True)
    atomic.fsync_folder(run.path)


def export(run_dir: str | Path, target: str | Path, kind: Any, dtype: str = "float32") -> dict[str, Any]:
    """Write an artefact of a run with its parity certificate, which is returned."""
    from luthier.export.run import export as write

    run, recipe, adapted, rows = reload(run_dir)
    facts = {name: run.read(getattr(run, name)) for name in ("metrics", "health", "manifest")}
    split = finish.evaluation_split(rows)
    weights = {
        name: sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for name, folder in (("base", adapted.base.path), ("adapter", run.adapter))
    }
    facts |= {"recipe": recipe.model_dump(mode="json"), "sizes": weights}
    return write(adapted, rows.rows[split], Path(target), kind, dtype, facts, rows.examples[split])
