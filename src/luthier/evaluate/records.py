"""What is kept of single rows: samples for people, predictions for paired tests between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from luthier.core.types import Example, Row
from luthier.evaluate import answers as asking
from luthier.evaluate.losses import RowLosses
from luthier.evaluate.scores import Answers, problem_of, shares
from luthier.evaluate.settings import EvaluateSettings
from luthier.metrics.scored import Scored

TEXT_SCORES = ("exact_match", "qa_f1", "rougeL", "number_match")
"""Scores of single answers that go into predictions.jsonl, where they were computed."""


class Measured(Protocol):
    """One model on the rows."""

    losses: RowLosses
    answers: Answers | None
    scores: dict[str, Scored]


def samples(
    adapted: Any,
    rows: Sequence[Row],
    examples: Mapping[str, Example],
    base: Answers | None,
    tuned: Answers | None,
    settings: EvaluateSettings,
    seed: int,
) -> list[dict[str, Any]]:
    """The first answered rows (of plain documents: continuations): reference, base and tuned, greedy and sampled."""
    count = settings.samples.count
    if not count or adapted.task.has_head or problem_of(rows) != "tokens":
        return []
    limit = settings.samples.max_new_tokens
    options: dict[str, Any] = {}
    if tuned is None or base is None:
        places = list(range(min(count, len(rows))))
        asked = asking.prompts(adapted, rows, examples, places)
        references = [asking.reference(adapted, rows[index], examples) for index in places]
        options = {"tasks": [rows[index].task for index in places]}
        tuned = asking.answer(adapted, asked, places, references, limit, **options)
        with adapted.off():
            base = asking.answer(adapted, asked, places, references, limit, **options)
    places, asked, references = tuned.places[:count], tuned.prompts[:count], tuned.references[:count]
    sampled: dict[str, list[str]] = {}
    if settings.samples.temperature > 0:
        options = {"temperature": settings.samples.temperature, "seed": seed}
        options["tasks"] = [rows[index].task for index in places]
        sampled["sampled"] = asking.answer(adapted, asked, places, references, limit, **options).texts
        with adapted.off():
            sampled["base_sampled"] = asking.answer(adapted, asked, places, references, limit, **options).texts
    made = []
    for number, index in enumerate(places):
        record: dict[str, Any] = {
            "id": rows[index].id,
            "prompt": _prompt(adapted, rows[index], examples, asked[number]),
        }
        record |= {"reference": references[number], "base": base.texts[number], "tuned": tuned.texts[number]}
        record |= {"base_finish": base.endings[number], "tuned_finish": tuned.endings[number]}
        record |= {name: texts[number] for name, texts in sampled.items()}
        if number < asking.COLOURED:
            record["tokens"] = asking.token_losses(adapted, rows[index])
        made.append(record)
    return made


def _prompt(adapted: Any, row: Row, examples: Mapping[str, Example], ids: Sequence[int]) -> str:
    """What was asked, as the data has it; of plain documents the beginning."""
    example = asking.example_of(row.id, examples)
    if example is None or not example.reference:
        return str(adapted.base.tokenizer.decode(list(ids), skip_special_tokens=True))
    texts = [text for turn in example.prompt for text in (turn.text, turn.context) if text.strip()]
    return "\n\n".join(texts)


def predictions(
    rows: Sequence[Row], sources: Sequence[str], base: Measured, tuned: Measured, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """One record a row: id, source, mean losses and units; labels with their shares; answers with their scores."""
    made = [
        {
            "id": rows[index].id,
            "source": sources[index],
            "tokens": int(tuned.losses.count[index]),
            "base_loss": float(base.losses.means[index]),
            "tuned_loss": float(tuned.losses.means[index]),
            "base_right": int(base.losses.right[index]),
            "tuned_right": int(tuned.losses.right[index]),
        }
        for index in range(len(rows))
    ]
    if tuned.losses.logits is not None:
        _add_labels(made, rows, base, tuned, labels)
    if tuned.answers is not None and base.answers is not None:
        _add_answers(made, base, tuned)
    return made


def _add_labels(
    made: list[dict[str, Any]], rows: Sequence[Row], base: Measured, tuned: Measured, labels: Sequence[str]
) -> None:
    problem = problem_of(rows)
    for side, name in ((base, "base"), (tuned, "tuned")):
        found = shares(side.losses, problem)
        for index, record in enumerate(made):
            record["target"] = _named(rows[index].target, labels, problem)
            if problem == "regression":
                record[name] = float(found[index])
            elif problem == "multi":
                record[name] = [labels[i] if labels else i for i in np.flatnonzero(found[index] > 0.5).tolist()]
            else:
                best = int(found[index].argmax())
                record[name], record[f"{name}_share"] = (labels[best] if labels else best), float(found[index][best])


def _named(target: Any, labels: Sequence[str], problem: str) -> Any:
    if problem == "single":
        return labels[int(target)] if labels else int(target)
    if problem == "multi":
        return [labels[i] if labels else i for i, on in enumerate(target) if on]
    return float(target)


def _add_answers(made: list[dict[str, Any]], base: Measured, tuned: Measured) -> None:
    assert base.answers is not None
    assert tuned.answers is not None
    for number, index in enumerate(tuned.answers.places):
        record = made[index]
        record |= {"reference": tuned.answers.references[number]}
        for side, name in ((base, "base"), (tuned, "tuned")):
            assert side.answers is not None
            record[name], record[f"{name}_finish"] = side.answers.texts[number], side.answers.endings[number]
    for metric in TEXT_SCORES:
        if metric in tuned.scores:
            before, after = base.scores[metric].each, tuned.scores[metric].each
            for number, index in enumerate(tuned.answers.places):
                made[index].setdefault("scores", {})[metric] = {
                    "base": float(before[number]),
                    "tuned": float(after[number]),
                }
