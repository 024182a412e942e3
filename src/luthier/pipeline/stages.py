"""Stages: several trainings in a row in one run directory, each on the weights of the one before.

    stages/1/  stages/2/ …   status.json, events.jsonl, rows.jsonl, checkpoints/, data/ of every stage but the last
    the run directory itself holds the last stage, the artefact, the evaluation and the report

Every stage builds its base anew with its own window and puts the trained weights on it. A killed run continues in the
stage where it was: finished ones only give their best weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core import atomic
from luthier.core.errors import ModelError
from luthier.core.events import Emitter, JsonLines
from luthier.core.rundir import RunDir
from luthier.pipeline import canaries, learn, place, prepare
from luthier.recipe import Recipe
from luthier.tasks import TASKS


def last(recipe: Recipe) -> Recipe:
    """The recipe that decides evaluation and artefact: that of the last stage, or itself without stages."""
    return recipe.at_stage(len(recipe.stages) - 1) if recipe.stages else recipe


def directory(run: RunDir, number: int) -> RunDir:
    """Where stage `number` (from 1) keeps its files."""
    return RunDir(run.path / "stages" / str(number))


def before_last(recipe: Recipe, run: RunDir, emit: Emitter, accept: bool = False) -> Mapping[str, Any] | None:
    """Train every stage but the last; the weights that the last one begins with (None without stages)."""
    carried: Mapping[str, Any] | None = None
    for number in range(1, len(recipe.stages)):
        inner = directory(run, number)
        if inner.state != "finished":
            run.write_status("running", stage=number, stages=len(recipe.stages))
            _train(recipe.at_stage(number - 1), inner, carried, emit, number, accept)
        carried = weights_of(inner)
    if recipe.stages:
        run.write_status("running", stage=len(recipe.stages), stages=len(recipe.stages))
    return carried


def weights_of(inner: RunDir) -> Mapping[str, Any]:
    """The best weights of a finished stage."""
    from luthier.train.checkpoint import Checkpoints

    status = inner.read(inner.status) or {}
    return Checkpoints(inner.checkpoints).load(int(status["weights"])).weights


def _train(
    recipe: Recipe, inner: RunDir, carried: Mapping[str, Any] | None, emit: Emitter, number: int, accept: bool
) -> None:
    from luthier.core.seeding import seed_everything

    known = place.begin(inner, recipe, None, accept)
    inner.write_status("running")
    task = TASKS.parse(recipe.task)
    log = JsonLines(inner.events)
    stage_emit = Emitter(log, *emit.listeners[1:])
    try:
        loaded, splits = prepare.read(recipe, task, stage_emit)
        labels, problem = prepare.label_names(splits.train, task)
        base = prepare.load_model(recipe, task, labels, problem, stage_emit)
        data = prepare.encode(recipe, loaded, splits, task, base, labels, problem, inner.cache)
        prepare.refuse_short(base, data, recipe)
        if known:
            place.same_data(inner, data.sources, accept)
        atomic.write_json(inner.manifest, data.manifest)
        atomic.write_text(inner.preview, data.inspection.preview)
        canaries.write(inner, data.planted)
        seed_everything(recipe.seed)
        adapted = learn.adapt(recipe, base, task, data, stage_emit)
        carry(carried, adapted)
        state = learn.train(recipe, adapted, data, inner, stage_emit, log)
    finally:
        log.close()
    weights = state.best_step if state.best_step >= 0 else state.step
    facts = {"task": task.name, "max_length": recipe.data.max_length, "context": dict(base.context)}
    best = {"best_step": state.best_step, "best_metric": state.best_metric, "tokens": state.tokens}
    inner.write_status("finished", number=number, step=state.step, weights=weights, **facts, **best)


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What `check` says of all stages: the last one's report, every problem, and the plan of the whole run (steps,
    time and disk are sums, memory is the largest)."""
    problems = [problem for one in found for problem in one["problems"]]
    whole = dict(found[-1]["plan"])
    for key, rule in (("steps", sum), ("training_s", sum), ("disk_mb", sum), ("memory_mb", max)):
        if all(key in one["plan"] for one in found):
            whole[key] = round(rule(one["plan"][key] for one in found), 1)
    return {**found[-1], "ok": all(one["ok"] for one in found), "problems": problems, "plan": whole, "stages": found}


def carry(carried: Mapping[str, Any] | None, adapted: Any) -> None:
    """Put the weights of the stage before on this one. A head that is new here stays fresh; a position table that
    grew is made longer by the rule of the plan."""
    if carried is None:
        return
    own, heads = adapted.state(), tuple(f"{name}." for name in adapted.base.head)
    made, missing = {}, []
    for name, fresh in own.items():
        old = carried.get(name)
        if old is not None and old.shape == fresh.shape:
            made[name] = old
        elif old is not None and adapted.base.context.get("resize") and old.shape[1:] == fresh.shape[1:]:
            made[name] = _longer(old, adapted.base)
        elif old is None and any(part in name for part in heads):
            made[name] = fresh
        else:
            missing.append(name)
    if missing:
        raise ModelError(
            f"{len(missing)} trained weights of the stage before do not fit this one: {', '.join(missing[:3])}",
            where="stages",
            remedy="stages share the model and the method",
        )
    adapted.load_state(made)


def _longer(old: Any, base: Any) -> Any:
    from luthier.models.window import RESERVED, longer_table

    resize = base.context["resize"]
    reserved = RESERVED.get(base.model.config.model_type, 0)
    return longer_table(old, reserved, int(resize["length"]), str(resize["how"]), 0)
