"""Measure and diagnose an adapter folder: one that another tool wrote, or one without its run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, ModelError, RecipeError
from luthier.core.events import Emitter, Listener
from luthier.core.types import Example, Row
from luthier.pipeline import prepare
from luthier.recipe import Recipe

SIGNS = ("adapter_config.json", "bundle.json", "luthier.json")
PLAIN = (".txt", ".txt.gz", ".txt.zst")


@dataclass(frozen=True)
class Judged:
    """An adapter on its base with the rows it is judged on."""

    adapted: Any
    card: Mapping[str, Any]
    rows: Sequence[Row]
    examples: Sequence[Example]
    recipe: Recipe


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter and is no run directory."""
    folder = Path(path)
    return not (folder / "status.json").is_file() and any((folder / name).is_file() for name in SIGNS)


def bring(
    folder: str | Path, base: str | None, data: str | None, task: str | None = None, template: str | None = None
) -> Judged:
    """Load the adapter and all rows of `data` (no rows without it).

    Where the folder does not say its task, it is language_model for plain text and instruct otherwise.
    """
    from luthier.adapted import load, read_card

    place = Path(folder)
    card = read_card(place)
    if not card:
        _refuse_head(place)
    wanted = task or _task(card, data)
    if base is None and not card:
        raise RecipeError("which base model is this adapter for?", where=str(place), remedy="--base MODEL")
    recipe = Recipe(**_settings(data, card, wanted))
    prepare.settle_threads(recipe)
    adapted = load(place, base)
    if not card:
        _fit(adapted, wanted, template)
    rows, examples = _rows(adapted, recipe, wanted) if data else ((), ())
    return Judged(adapted, card, rows, examples, recipe)


def evaluate(judged: Judged, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """The numbers of metrics.json for this adapter, with its samples."""
    from luthier.evaluate.run import evaluate as measure

    adapted, recipe = judged.adapted, judged.recipe
    found = measure(
        adapted,
        judged.rows,
        judged.examples,
        adapted.task.name,
        recipe.evaluate,
        labels=adapted.labels,
        seed=recipe.seed,
        emit=Emitter(*listeners),
    )
    return {**found.as_json(), "split": "all", "data": str(recipe.data.train), "samples": found.samples}


def health(judged: Judged, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """The numbers of health.json; without rows only what weights and identity tell."""
    from luthier.health.run import diagnose

    facts = {"method": judged.adapted.method, **({"card": judged.card} if judged.card else {})}
    emit = Emitter(*listeners)
    return diagnose(judged.adapted, judged.rows, run=facts, seed=judged.recipe.seed, emit=emit).as_json()


def _task(card: Mapping[str, Any], data: str | None) -> str:
    known = card.get("task")
    if known:
        return str(known["name"] if isinstance(known, Mapping) else known)
    return "language_model" if data and data.endswith(PLAIN) else "instruct"


def _settings(data: str | None, card: Mapping[str, Any], task: str) -> dict[str, Any]:
    rows: dict[str, Any] = {"max_length": card.get("max_length", 512), "cache": False}
    return {"task": task, "data": {**rows, **({"train": data} if data else {})}}


def _fit(adapted: Any, task: str, template: str | None) -> None:
    """Give an adapter that says nothing of itself the task and the template that it is judged with."""
    from luthier.data.templates import choose
    from luthier.tasks import TASKS

    adapted.task = TASKS.parse(task)
    adapted.template = choose(template or "auto", adapted.base.tokenizer, task)


def _rows(adapted: Any, recipe: Recipe, task: str) -> tuple[Sequence[Row], Sequence[Example]]:
    from luthier.data import encode
    from luthier.data import load as loading

    examples = loading.load(recipe.data, task).examples
    options: dict[str, Any] = {"labels": adapted.labels or None, "stop_id": adapted.base.stop_ids[0], "cache": None}
    options |= {"tasks": adapted.tasks, "spoken": adapted.task.spoken}
    rows = encode.encode(examples, adapted.template, adapted.base.tokenizer, recipe.data, task, **options)
    if not len(rows):
        raise DataError("no row is left to measure", where=str(recipe.data.train), remedy="look at the file")
    return rows, examples


def _refuse_head(folder: Path) -> None:
    """A classifier of another tool does not say which class is which."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError("no adapter here", where=str(folder), remedy="name the folder of an adapter")
    try:
        kind = json.loads(file.read_text("utf-8")).get("task_type")
    except (ValueError, AttributeError):
        raise ModelError("adapter_config.json is not readable", where=str(file)) from None
    if kind not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"an adapter of type {kind} does not say which class is which",
            where=str(file),
            remedy="language-model adapters of other tools can be judged, and any adapter that luthier saved",
        )
