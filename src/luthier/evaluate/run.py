"""Base against tuned on the same rows and the same prompts, with intervals, the noise floor and the smallest effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.core.events import Emit, silent
from luthier.core.types import Example, Row
from luthier.evaluate.answers import answer, sample_texts, text_scores
from luthier.evaluate.losses import RowLosses, perplexity, row_losses
from luthier.evaluate.settings import EvaluateSettings
from luthier.evaluate.slices import slices_of
from luthier.metrics.classes import calibration_error, classification
from luthier.metrics.resample import paired

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ece", "mse"})
SHOWN_ROWS = 10


@dataclass
class Evaluation:
    """What was measured; `as_json` is the contract's metrics.json."""

    rows: int
    supervised_tokens: int
    base: dict[str, float]
    tuned: dict[str, float]
    difference: dict[str, dict[str, Any]]
    noise_floor: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "rows": self.rows,
            "supervised_tokens": self.supervised_tokens,
            "base": self.base,
            "tuned": self.tuned,
            "difference": self.difference,
            "noise_floor": self.noise_floor,
            **self.extra,
        }


def evaluate(
    adapted: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    task: str,
    settings: EvaluateSettings,
    *,
    labels: Sequence[str] = (),
    seed: int = 0,
    emit: Emit = silent,
) -> Evaluation:
    """Measure on these rows. The base is the model with the adapter off; for a classification head it is the
    untrained head, whose accuracy is chance."""
    tuned = row_losses(adapted, rows, settings.batch_tokens)
    with adapted.off():
        base = row_losses(adapted, rows, settings.batch_tokens)
        again = row_losses(adapted, rows, settings.batch_tokens)
    sources = {example.id: example for example in examples}
    whole = [sources.get(row.id.partition("#")[0], sources.get(row.id)) for row in rows]
    if adapted.task.has_head:
        found = _classified(base, tuned, rows, labels, settings, seed)
    else:
        found = _tokens(base, tuned, settings, seed)
        if adapted.task.generates and settings.generate_rows and task == "instruct":
            _generated(found, adapted, examples, settings, seed, emit)
        if settings.samples.count:
            found.samples = sample_texts(adapted, examples, settings.samples, seed)
    found.noise_floor |= {"loss": abs(again.loss - base.loss)}
    found.extra["slices"] = slices_of(base, tuned, rows, whole, seed)
    found.extra["best_rows"], found.extra["worst_rows"] = _extremes(base, tuned, rows, whole)
    _predictions(found, base, tuned, rows, whole, labels)
    return found


def _tokens(base: RowLosses, tuned: RowLosses, settings: EvaluateSettings, seed: int) -> Evaluation:
    numbers = [
        {"loss": one.loss, "perplexity": perplexity(one.loss), "token_accuracy": one.accuracy} for one in (base, tuned)
    ]
    loss = paired(base.total, tuned.total, base.count, settings.bootstrap, seed)
    right = paired(base.right, tuned.right, base.count, settings.bootstrap, seed)
    ratio = {  # perplexity's interval follows from the loss's: tuned = base · exp(difference)
        "value": numbers[1]["perplexity"] - numbers[0]["perplexity"],
        "ci95": [numbers[0]["perplexity"] * (float(np.exp(min(700.0, edge))) - 1) for edge in loss["ci95"]],
        "p": loss["p"],
        "detectable": None,
    }
    return Evaluation(
        len(base.total),
        int(base.count.sum()),
        numbers[0],
        numbers[1],
        {"loss": loss, "perplexity": ratio, "token_accuracy": right},
        {},
    )


def _classified(
    base: RowLosses, tuned: RowLosses, rows: Sequence[Row], labels: Sequence[str], settings: EvaluateSettings, seed: int
) -> Evaluation:
    loss = paired(base.total, tuned.total, base.count, settings.bootstrap, seed)
    size = len(rows)
    if not rows or not isinstance(rows[0].target, int):
        numbers = [{"loss": one.loss} for one in (base, tuned)]
        if rows and isinstance(rows[0].target, float):
            numbers = [{"loss": one.loss, "mse": one.loss} for one in (base, tuned)]
        return Evaluation(size, size, numbers[0], numbers[1], {"loss": loss}, {})
    true = np.array([row.target for row in rows])
    made = []
    for one in (base, tuned):
        assert one.logits is not None
        shares = np.exp(one.logits - one.logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        parts = classification(true, one.logits.argmax(1), labels)
        parts["metrics"] |= {"loss": one.loss, "ece": calibration_error(shares.max(1), one.right)}
        made.append(parts)
    accuracy = paired(base.right, tuned.right, None, settings.bootstrap, seed)
    extra = {"per_class": made[1]["per_class"], "confusion": made[1]["confusion"]}
    return Evaluation(
        size, size, made[0]["metrics"], made[1]["metrics"], {"loss": loss, "accuracy": accuracy}, {}, extra
    )


def _generated(
    found: Evaluation, adapted: Any, examples: Sequence[Example], settings: EvaluateSettings, seed: int, emit: Emit
) -> None:
    """Answers by greedy generation, scored against the references, base and tuned on the same prompts."""
    asked = [examples[i] for i in range(min(settings.generate_rows, len(examples)))]
    asked = [example for example in asked if example.reference]
    if not asked:
        return
    emit("stage", name="generate", rows=len(asked))
    limit = settings.samples.max_new_tokens
    tuned = answer(adapted, asked, limit, seed)
    with adapted.off():
        base = answer(adapted, asked, limit, seed)
    references = [example.reference for example in asked]
    names = None if settings.metrics == "auto" else list(settings.metrics)
    scores = [text_scores([a.text for a in answers], references, names) for answers in (base, tuned)]
    for one, answers in zip(scores, (base, tuned), strict=True):
        one["stop_rate"] = np.array([float(a.finish == "stop") for a in answers])
    for name in scores[1]:
        found.base[name], found.tuned[name] = float(scores[0][name].mean()), float(scores[1][name].mean())
        found.difference[name] = paired(scores[0][name], scores[1][name], None, settings.bootstrap, seed)
    found.extra["generated_rows"] = len(asked)
    found.extra["generations"] = [
        {"row": e.id, "reference": e.reference, "base": b.text, "tuned": t.text}
        for e, b, t in zip(asked[:50], base, tuned, strict=False)
    ]


def _extremes(
    base: RowLosses, tuned: RowLosses, rows: Sequence[Row], whole: Sequence[Example | None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows that gained most and rows that are worst now, with their text."""
    means = [one.total / np.maximum(1, one.count) for one in (base, tuned)]
    gain = means[0] - means[1]

    def listed(order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"row": rows[i].id, "base": float(means[0][i]), "tuned": float(means[1][i]), **_text(whole[i])}
            for i in order[:SHOWN_ROWS].tolist()
        ]

    return listed(np.argsort(-gain)), listed(np.argsort(-means[1]))


def _text(example: Example | None) -> dict[str, str]:
    if example is None:
        return {}
    asked = " ".join(turn.text for turn in example.prompt)[:500]
    return {
        "source": str(example.source),
        "prompt": asked,
        "reference": (example.reference or str(example.label or ""))[:500],
    }


def _predictions(
    found: Evaluation,
    base: RowLosses,
    tuned: RowLosses,
    rows: Sequence[Row],
    whole: Sequence[Example | None],
    labels: Sequence[str],
) -> None:
    generated: Mapping[str, Any] = {item["row"]: item for item in found.extra.get("generations", ())}
    for index, row in enumerate(rows):
        example = whole[index]
        record: dict[str, Any] = {
            "row": row.id,
            "source": str(example.source) if example else "",
            "tokens": int(base.count[index]),
            "base_loss": float(base.total[index]),
            "tuned_loss": float(tuned.total[index]),
            "base_right": float(base.right[index]),
            "tuned_right": float(tuned.right[index]),
        }
        if tuned.logits is not None and base.logits is not None and isinstance(row.target, int):
            record |= {
                "label": labels[row.target],
                "base": labels[int(base.logits[index].argmax())],
                "tuned": labels[int(tuned.logits[index].argmax())],
            }
        if row.id in generated:
            record |= {"base": generated[row.id]["base"], "tuned": generated[row.id]["tuned"]}
        found.predictions.append(record)
