"""From what a model did on the rows to metrics: which ones fit a task, and their scores by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from luthier.core.errors import RecipeError
from luthier.core.types import Row
from luthier.evaluate.losses import RowLosses
from luthier.metrics import METRICS
from luthier.metrics.scored import Scored

Problem = Literal["tokens", "single", "multi", "regression"]

AUTO: Mapping[str, tuple[str, ...]] = {
    "tokens": ("loss", "perplexity", "token_accuracy"),
    "single": (
        "loss",
        "accuracy",
        "precision_macro",
        "precision_weighted",
        "recall_macro",
        "recall_weighted",
        "f1_macro",
        "f1_weighted",
        "mcc",
        "ece",
    ),
    "multi": ("loss", "accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_weighted"),
    "regression": ("loss", "mse", "pearson", "spearman"),
}
TEXT = (
    "exact_match",
    "qa_f1",
    "rouge1",
    "rouge2",
    "rougeL",
    "bleu",
    "chrf",
    "stop_rate",
    "distinct2",
    "length_ratio",
    "repetition",
)
"""Text metrics of `metrics: auto`; number_match and json_valid join where most references are of that form."""
PRIMARY: Mapping[str, str] = {"tokens": "loss", "single": "f1_macro", "multi": "f1_macro", "regression": "mse"}


@dataclass(frozen=True)
class Answers:
    """What a model wrote for some of the rows (`places` are their indices), and how each answer ended."""

    places: list[int]
    prompts: list[list[int]]
    texts: list[str]
    endings: list[str]
    references: list[str]


def problem_of(rows: Sequence[Row]) -> Problem:
    """What a row's truth is: tokens, a class, several classes, a value."""
    target = rows[0].target if len(rows) else None
    if target is None:
        return "tokens"
    if isinstance(target, tuple | list):
        return "multi"
    return "single" if isinstance(target, int | np.integer) else "regression"


def wanted(
    asked: Sequence[str] | Literal["auto"], problem: Problem, references: Sequence[str], classes: int
) -> list[str]:
    """Names of the metrics to compute. RecipeError for one that does not exist or does not fit the task."""
    if asked != "auto":
        fitting = {"tokens": {"tokens", "text", "endings"}, "single": {"labels"}, "multi": {"labels"}}
        allowed = fitting.get(problem, {"values"})
        for name in asked:
            if METRICS.get(name).kind not in allowed and name != "loss":
                raise RecipeError(f"the metric {name} does not fit this task", where="evaluate.metrics")
        return list(dict.fromkeys(["loss", *asked]))
    names = list(AUTO[problem])
    if problem == "single" and classes == 2:
        names.append("auroc")
    return names + text_metrics(references) if problem == "tokens" and references else names


def text_metrics(references: Sequence[str]) -> list[str]:
    """TEXT, and what the references' own form asks for."""
    from luthier.metrics.json_valid import is_json

    names = list(TEXT)
    if sum("####" in text or _only_number(text) for text in references) > len(references) / 2:
        names.append("number_match")
    if sum(text.lstrip()[:1] in ("{", "[") and is_json(text) for text in references) > len(references) / 2:
        names.append("json_valid")
    return names


def _only_number(text: str) -> bool:
    return text.strip().lstrip("-").replace(",", "").replace(".", "", 1).isdigit()


def scores(names: Sequence[str], rows: Sequence[Row], losses: RowLosses, answers: Answers | None) -> dict[str, Scored]:
    """name → Scored. Token and label metrics have a row for every row, text metrics one for every answer."""
    problem = problem_of(rows)
    made: dict[str, Scored] = {}
    truth = None if problem == "tokens" else truths(rows)
    for name in names:
        metric = METRICS.get(name)
        if metric.kind == "tokens":
            made[name] = metric(np.stack([losses.total, losses.right], axis=1), losses.count)
        elif metric.kind in ("labels", "values"):
            made[name] = metric(shares(losses, problem), truth)
        elif answers is not None and answers.places:
            made[name] = metric(answers.endings if metric.kind == "endings" else answers.texts, answers.references)
    return made


def truths(rows: Sequence[Row]) -> np.ndarray:
    """[n] or [n, classes] true targets."""
    return np.array([rows[index].target for index in range(len(rows))])


def shares(losses: RowLosses, problem: Problem) -> Any:
    """What label and value metrics read: softmax or sigmoid shares, or the values."""
    logits = losses.logits
    assert logits is not None
    if problem == "regression":
        return logits[:, 0]
    if problem == "multi":
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)
