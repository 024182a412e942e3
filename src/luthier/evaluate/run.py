"""Base against tuned on the same rows with the same prompts: the numbers of evaluation/metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.core.events import Emit, silent
from luthier.core.types import Example, Row
from luthier.data.batching import lengths_of
from luthier.evaluate import answers as asking
from luthier.evaluate import guards, records
from luthier.evaluate import slices as slicing
from luthier.evaluate.losses import RowLosses, row_losses
from luthier.evaluate.scores import PRIMARY, Answers, Problem, problem_of, scores, shares, truths, wanted
from luthier.evaluate.settings import EvaluateSettings
from luthier.metrics import METRICS, classes
from luthier.metrics.resample import group_indices, paired
from luthier.metrics.scored import Scored

SLICE_METRIC = {"tokens": "loss", "single": "accuracy", "multi": "accuracy", "regression": "mse"}
SLICE_RESAMPLES = 200
REPEATED_ANSWERS = 16
"""Answers that the base gives a second time, in other batches, for the noise floor of text metrics."""


@dataclass
class Evaluation:
    """What was measured. `as_json` is metrics.json; samples and predictions are their own files."""

    values: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The contract's keys and more."""
        return self.values


@dataclass
class Side:
    """One model on the rows."""

    losses: RowLosses
    answers: Answers | None
    scores: dict[str, Scored]


def evaluate(
    adapted: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    task: str,
    settings: EvaluateSettings,
    *,
    labels: Sequence[str] = (),
    training: Sequence[Example] = (),
    seed: int = 0,
    emit: Emit = silent,
) -> Evaluation:
    """Measure the tuned model and the untouched base on every row; for classification the base has an untrained head.

    `training` are the rows that the model was tuned on: how far a row is from them makes a slice.
    `rows` without any give an evaluation with no metrics. Everything is seeded; both models see the same batches.
    """
    if not len(rows):
        return Evaluation({"split": None, "rows": 0, "supervised_tokens": 0, "base": {}, "tuned": {}, "difference": {}})
    by_id = {example.id: example for example in examples}
    problem = problem_of(rows)
    asked = _places(adapted, rows, by_id, settings, seed)
    names = wanted(settings.metrics, problem, [asking.reference(adapted, rows[i], by_id) for i in asked], len(labels))
    emit("stage", name="evaluate.tuned", rows=len(rows), answers=len(asked))
    tuned = _side(adapted, rows, by_id, asked, names, settings)
    emit("stage", name="evaluate.base", rows=len(rows), answers=len(asked))
    with adapted.off():
        base = _side(adapted, rows, by_id, asked, names, settings)
        floor = _noise_floor(adapted, rows, base, names, settings)
    groups = group_indices([row_id.rpartition("#")[0] or row_id for row_id in _ids(rows)])
    values = _values(rows, base, tuned, groups, settings, seed)
    values |= {"task": task, "problem": problem, "primary": _primary(settings, problem, names), "noise_floor": floor}
    values["directions"] = {name: METRICS.get(name).higher_is_better for name in values["tuned"]}
    parts = slicing.parts(rows, by_id, lengths_of(rows), training)
    one = SLICE_METRIC[problem] if SLICE_METRIC[problem] in tuned.scores else "loss"
    values["slices"] = slicing.compare(parts, base.scores[one], tuned.scores[one], one, SLICE_RESAMPLES, seed)
    shown = [asking.example_of(name, by_id) for name in _ids(rows)]
    sources = ["" if example is None else str(example.source) for example in shown]
    values["extremes"] = slicing.extremes(rows, shown, base.losses.means, tuned.losses.means)
    values |= _by_class(rows, base, tuned, problem, labels) if problem in ("single", "multi") else {}
    if settings.guard:
        emit("stage", name="evaluate.guards", files=len(settings.guard))
        options = {"batch_tokens": settings.batch_tokens, "resamples": settings.bootstrap, "seed": seed}
        values["guards"] = guards.measure(adapted, settings.guard, **options)
    samples = records.samples(adapted, rows, by_id, base.answers, tuned.answers, settings, seed)
    return Evaluation(values, samples, records.predictions(rows, sources, base, tuned, labels))


def _ids(rows: Sequence[Row]) -> list[str]:
    return [rows[index].id for index in range(len(rows))]


def _places(
    adapted: Any, rows: Sequence[Row], examples: Mapping[str, Example], settings: EvaluateSettings, seed: int
) -> list[int]:
    """Rows that are answered by generation, the samples first."""
    if adapted.task.has_head or problem_of(rows) != "tokens":
        return []
    return asking.choose(rows, examples, max(settings.generate_rows, settings.samples.count), seed)


def _side(
    adapted: Any,
    rows: Sequence[Row],
    examples: Mapping[str, Example],
    asked: Sequence[int],
    names: Sequence[str],
    settings: EvaluateSettings,
) -> Side:
    losses = row_losses(adapted, rows, settings.batch_tokens)
    made = None
    if asked:
        references = [asking.reference(adapted, rows[index], examples) for index in asked]
        ids = asking.prompts(adapted, rows, examples, asked)
        tasks = [rows[index].task for index in asked]
        made = asking.answer(adapted, ids, asked, references, settings.samples.max_new_tokens, tasks=tasks)
    return Side(losses, made, _scores(names, rows, losses, made))


def _scores(names: Sequence[str], rows: Sequence[Row], losses: RowLosses, made: Answers | None) -> dict[str, Scored]:
    found = scores([name for name in names if name != "loss"], rows, losses, made)
    loss = METRICS.get("loss")(np.stack([losses.total, losses.right], axis=1), losses.count)
    return {"loss": loss, **found}


def _noise_floor(
    adapted: Any, rows: Sequence[Row], base: Side, names: Sequence[str], settings: EvaluateSettings
) -> dict[str, float]:
    """|base − base| when the base is scored a second time in other batches: what the instrument cannot tell apart."""
    again = row_losses(adapted, rows, max(1, settings.batch_tokens // 3))
    texts = [name for name in names if METRICS.get(name).kind in ("text", "endings")]
    second = _scores([name for name in names if name not in texts], rows, again, None)
    floor = {name: abs(second[name].value - base.scores[name].value) for name in second}
    first = base.answers
    if first is not None and texts:
        order = list(range(min(len(first.places), REPEATED_ANSWERS)))[::-1]
        prompts, places = [first.prompts[i] for i in order], [first.places[i] for i in order]
        references, limit = [first.references[i] for i in order], settings.samples.max_new_tokens
        repeated = asking.answer(adapted, prompts, places, references, limit)
        now = scores(texts, rows, again, repeated)
        floor |= {name: abs(now[name].value - base.scores[name].take(order).value) for name in texts}
    return {name: float(value) if np.isfinite(value) else 0.0 for name, value in floor.items()}


def _primary(settings: EvaluateSettings, problem: Problem, names: Sequence[str]) -> str:
    """The metric of the headline and the verdict: the first that the recipe names, else the task's own."""
    if settings.metrics != "auto" and settings.metrics:
        return settings.metrics[0]
    return PRIMARY[problem] if PRIMARY[problem] in names else "loss"


def _values(
    rows: Sequence[Row],
    base: Side,
    tuned: Side,
    groups: np.ndarray | None,
    settings: EvaluateSettings,
    seed: int,
) -> dict[str, Any]:
    """The contract's keys, and the losses by position."""
    difference = {}
    for name, score in tuned.scores.items():
        fits = groups if groups is not None and len(score.rows) == len(groups) else None
        difference[name] = paired(base.scores[name], score, settings.bootstrap, seed, fits)
    made: dict[str, Any] = {
        "split": None,
        "rows": len(rows),
        "supervised_tokens": int(tuned.losses.count.sum()),
        "base": {name: _finite(score.value) for name, score in base.scores.items()},
        "tuned": {name: _finite(score.value) for name, score in tuned.scores.items()},
        "difference": {name: {k: _finite(v) for k, v in item.items()} for name, item in difference.items()},
        "per_class": {},
        "confusion": {},
        "answers": 0 if tuned.answers is None else len(tuned.answers.places),
    }
    if tuned.losses.logits is None:
        made["by_position"] = {"base": base.losses.positions(), "tuned": tuned.losses.positions()}
    return made


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that does not exist (AUROC of one class) is null."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _by_class(rows: Sequence[Row], base: Side, tuned: Side, problem: Problem, labels: Sequence[str]) -> dict[str, Any]:
    """Tuned numbers by class (the base's beside them), and the confusion matrix where there is one class a row."""
    truth = truths(rows)
    sides = {"base": shares(base.losses, problem), "tuned": shares(tuned.losses, problem)}
    names = list(labels) or [str(index) for index in range(sides["tuned"].shape[1])]
    each = {side: classes.per_class(found, truth, names) for side, found in sides.items()}
    made: dict[str, Any] = {"per_class": each["tuned"], "per_class_base": each["base"]}
    if problem == "single":
        made["confusion"] = classes.confusion(sides["tuned"], truth, names)
    return made
