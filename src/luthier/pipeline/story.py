"""The run, told in order. Every stage is a function of another room; this file only passes things on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core import atomic
from luthier.core.errors import DataError, GateFailed, LuthierError
from luthier.core.events import Emitter, JsonLines, Listener
from luthier.core.rundir import RunDir
from luthier.pipeline import canaries, place, prepare, trackers
from luthier.recipe import Recipe
from luthier.tasks import TASKS


@dataclass(frozen=True)
class Run:
    """A finished run. Everything is read from its directory."""

    dir: RunDir
    was_finished: bool = False

    @property
    def metrics(self) -> dict[str, Any]:
        """evaluation/metrics.json"""
        return self.dir.read(self.dir.metrics) or {}

    @property
    def health(self) -> Any:
        """health.json; `.verdict` is ok | warn | fail."""
        from types import SimpleNamespace

        return SimpleNamespace(**(self.dir.read(self.dir.health) or {"verdict": "absent"}))

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.dir.report_html


def run(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    source: Path | None = None,
    accept_changes: bool = False,
) -> Run:
    """The whole story. Continues an unfinished run of the same recipe; leaves a finished one alone.

    Raises LuthierError subclasses whose `exit_code` is the contract's. A run that finished with a failed
    health diagnosis raises GateFailed after everything was written.
    """
    from luthier.core.lock import RunLock
    from luthier.core.signals import handle_signals

    place_of_run = place.choose(recipe, run_dir)
    if place_of_run.state == "finished":
        place.begin(place_of_run, recipe, source)
        return Run(place_of_run, was_finished=True)
    _refuse_early(recipe)
    place_of_run.path.mkdir(parents=True, exist_ok=True)
    with RunLock(place_of_run.lock), handle_signals():
        atomic.sweep(place_of_run.path)
        known = place.begin(place_of_run, recipe, source, accept_changes)
        place_of_run.write_status("running", step=(place_of_run.read(place_of_run.status) or {}).get("step", 0))
        log = JsonLines(place_of_run.events)
        emit = Emitter(log, *listeners)
        try:
            emit.listeners += trackers.listeners(recipe, place_of_run)
            verdict = _tell(recipe, place_of_run, emit, log, known, accept_changes)
        except BaseException as error:
            _note_failure(place_of_run, emit, error)
            raise
        finally:
            log.close()
    if verdict == "fail":
        raise GateFailed(
            f"the run finished, but a health diagnosis failed: {_failed(place_of_run)}",
            where=str(place_of_run.path),
            remedy=f"luthier health {place_of_run.path}",
        )
    return Run(place_of_run)


def _failed(run: RunDir) -> str:
    """The failed diagnoses with what they rest on."""
    found = (run.read(run.health) or {}).get("diagnoses", [])
    return "; ".join(f"{one['name']} ({one['evidence']})" for one in found if one["status"] == "fail")


def resume(run_dir: str | Path, listeners: Sequence[Listener] = (), accept_changes: bool = False) -> Run:
    """Continue the run of a directory with its own recipe."""
    place_of_run = RunDir.open(run_dir)
    return run(place.reopen(place_of_run), run_dir, listeners, accept_changes=accept_changes)


def _refuse_early(recipe: Recipe) -> None:
    """What can be seen to be wrong before anything is created."""
    from luthier.data import load as loading

    canaries.refuse_unmeasured(recipe)
    loading.locate(recipe.data)
    trackers.refuse_missing(recipe.report.report_to)


def _note_failure(run: RunDir, emit: Emitter, error: BaseException) -> None:
    code = getattr(error, "exit_code", 3 if isinstance(error, KeyboardInterrupt) else 70)
    state = "interrupted" if code == 3 else "failed"
    with suppress(OSError, LuthierError):  # the disk may be the very reason
        emit("failed", what=str(error)[:2000], exit_code=code)
        run.write_status(state, exit_code=code)


def _tell(recipe: Recipe, run: RunDir, emit: Emitter, log: JsonLines, known: bool, accept: bool) -> str:
    """load → split → augment → adapt → train → evaluate → health → save → report; returns the health verdict."""
    from luthier.core.seeding import seed_everything
    from luthier.pipeline import finish, learn, stages, windows

    threads = prepare.settle_threads(recipe)
    carried = stages.before_last(recipe, run, emit, accept)
    recipe = stages.last(recipe)
    task = TASKS.parse(recipe.task)
    loaded, splits = prepare.read(recipe, task, emit)
    labels, problem = prepare.label_names(splits.train, task)
    base = prepare.load_model(recipe, task, labels, problem, emit)
    data = prepare.encode(recipe, loaded, splits, task, base, labels, problem, run.cache)
    prepare.refuse_short(base, data, recipe)
    if known and run.manifest.is_file():
        place.same_data(run, data.sources, accept)
    atomic.write_json(run.manifest, data.manifest)
    atomic.write_text(run.preview, data.inspection.preview)
    canaries.write(run, data.planted)
    atomic.write_json(run.environment, place.environment(recipe, base, data.sources, threads))
    for warning in data.inspection.warnings:
        emit("warning", what=warning.what, where=warning.where, remedy=warning.remedy)
    seed_everything(recipe.seed)
    adapted = learn.adapt(recipe, base, task, data, emit)
    stages.carry(carried, adapted)
    state = learn.train(recipe, adapted, data, run, emit, log)
    windows.of_run(adapted.eval(), data, run, emit)
    return finish.finish(recipe, adapted, data, state, run, emit)


def check(recipe: Recipe, quick: bool = False) -> dict[str, Any]:
    """All but training. `quick` stops before the model (no torch). Writes nothing. Stages are checked one by one."""
    if recipe.stages:
        from luthier.pipeline import stages

        canaries.refuse_unmeasured(recipe)
        return stages.together([check(recipe.at_stage(index), quick) for index in range(len(recipe.stages))])
    task = TASKS.parse(recipe.task)
    problems: list[dict[str, Any]] = []
    report: dict[str, Any] = {"ok": True, "problems": problems, "data": {}, "model": {}, "plan": {}, "warnings": []}
    report["recipe"] = recipe.model_dump(mode="json")
    try:
        loaded, splits = prepare.read(recipe, task)
        labels, problem = prepare.label_names(splits.train, task)
        report["data"] = {
            "rows": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
            "labels": list(labels),
            "split": splits.report,
        }
        if not quick:
            from luthier.pipeline import plan

            report |= plan.full_check(recipe, task, loaded, splits, labels, problem)
    except DataError as error:
        report["ok"] = False
        problems += [{"what": p.what, "where": p.where, "remedy": p.remedy} for p in error.problems]
    except LuthierError:
        raise
    return report
