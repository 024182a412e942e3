"""Data and model made ready: everything that `check` shows and `run` trains on, by the same code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, Problem, RecipeError
from luthier.core.events import Emit, silent
from luthier.core.types import Example, Row
from luthier.methods import METHODS
from luthier.pipeline import canaries
from luthier.recipe import Recipe
from luthier.tasks import TASKS


@dataclass
class Data:
    """The rows of every split, as text and as tokens, and what the inspection says of them."""

    examples: Mapping[str, Sequence[Example]]
    rows: Mapping[str, Sequence[Row]]
    labels: tuple[str, ...]
    problem: str
    template: Any
    inspection: Any
    manifest: dict[str, Any]
    sources: dict[str, str]
    planted: canaries.Planted | None = None


def read(recipe: Recipe, task: Any, emit: Emit = silent) -> tuple[Any, Any]:
    """Load and split. Nothing here needs a model: a bad file is told before one is loaded."""
    from luthier.data import load as loading
    from luthier.data import split as splitting

    canaries.refuse(recipe, task)
    loaded = loading.load(recipe.data, task.name, emit)
    return loaded, splitting.split(loaded, recipe.data.split, task.name)


def label_names(examples: Sequence[Example], task: Any) -> tuple[tuple[str, ...], str]:
    """The classes in sorted order and the kind of problem: single | multi | regression."""
    if task.name != "classify":
        return (), "single"
    found = [example.label for example in examples]
    if any(label is None for label in found):
        where = str(examples[[label is None for label in found].index(True)].source)
        raise DataError("a row has no label", where=where, remedy="classify needs text and label columns")
    asked = task.params.problem
    if asked == "regression" or (asked == "auto" and all(isinstance(label, int | float) for label in found)):
        return ("value",), "regression"
    if asked == "multi" or any(isinstance(label, tuple) for label in found):
        names = {str(name) for label in found for name in (label if isinstance(label, tuple) else (label,))}
        return tuple(sorted(names)), "multi"
    names = {str(label) for label in found}
    if len(names) < 2:
        raise DataError(f"there is only one class: {sorted(names)}", remedy="classification needs two classes or more")
    return tuple(sorted(names)), "single"


def encode(
    recipe: Recipe,
    loaded: Any,
    splits: Any,
    task: Any,
    base: Any,
    labels: tuple[str, ...],
    problem: str,
    cache: Path | None,
) -> Data:
    """Augment the training rows, render, tokenise, inspect. Fatal findings are raised together."""
    from luthier.data import columns, inspect, templates
    from luthier.data import encode as encoding

    template = templates.choose(recipe.data.template, base.tokenizer, "instruct" if task.spoken else task.name)
    into_rows = partial(
        encoding.encode,
        template=template,
        tokenizer=base.tokenizer,
        settings=recipe.data,
        task=task.name,
        labels=labels or None,
        stop_id=base.stop_ids[0],
        tasks=getattr(METHODS.parse(recipe.method), "tasks", ()),
        spoken=task.spoken,
    )
    training, augmented = splits.train, None
    if recipe.augment:
        from luthier.data import augmenting

        augmented = augmenting.augment(splits.train, list(recipe.augment), recipe.seed, cache=cache)
        training = augmented.examples
    planted = canaries.draw(recipe, task, splits.train, into_rows)
    if planted is not None:
        training = columns.extended(columns.of(training), planted.drawn.planted)
    examples = {"train": training, "validation": splits.validation, "test": splits.test}
    kept = cache if recipe.data.cache else None
    rows = {name: into_rows(part, cache=kept) for name, part in examples.items()}
    inspection = inspect.inspect(loaded, splits, rows, base.tokenizer, template, recipe.data)
    manifest = dict(inspection.manifest)
    if augmented is not None:
        manifest["augmentation"] = augmented.report
    if planted is not None:
        manifest["canaries"] = {"planted": len(planted.planted), "controls": len(planted.controls)}
    _refuse_empty(rows, inspection.problems)
    sources = {str(item["path"]): str(item["sha256"]) for item in manifest.get("sources", ())}
    return Data(examples, rows, labels, problem, template, inspection, manifest, sources, planted)


def _refuse_empty(rows: Mapping[str, Sequence[Row]], problems: Sequence[Problem]) -> None:
    found = list(problems)
    if not len(rows["train"]):
        found.append(Problem("no training row is left", "data.train", "see what was dropped with `luthier check`"))
    if not len(rows["validation"]):
        found.append(
            Problem(
                "the validation set has no rows", "data.split.validation", "raise the share, or give data.validation"
            )
        )
    if found:
        raise DataError("the data must not be trained on", problems=found)


def load_model(recipe: Recipe, task: Any, labels: tuple[str, ...], problem: str, emit: Emit = silent) -> Any:
    """The base, with the window extension of the recipe, which is proved to act."""
    from luthier.models import suited
    from luthier.models.load import load_base

    ignored = [Problem(*fault) for fault in recipe.without_effect(problem)]
    if ignored:
        raise RecipeError("a setting would be ignored", problems=ignored)
    _refuse_unspoken(task, problem)
    suited.refuse_task(recipe.model, task.name, task.has_head)
    plan, config = None, {}
    if recipe.context != "none":
        from luthier.context import CONTEXTS
        from luthier.models.load import read_config, resolve

        config = read_config(resolve(recipe.model.path))
        plan = CONTEXTS.parse(recipe.context).plan(config)
    headed = (labels or None) if task.has_head else None
    base = load_base(recipe.model, task=task.name, labels=headed, problem=problem, context=plan, seed=recipe.seed)
    suited.prove_causal(base)
    if plan is not None:
        from luthier.context.proof import prove

        emit("context", plan=plan, proof=prove(base, config))
        for warning in plan["warnings"]:
            emit("warning", what=warning, where="context")
    return base


def _refuse_unspoken(task: Any, problem: str) -> None:
    """Label texts are answers: that needs one label a row."""
    if task.spoken and problem != "single":
        what = f"labels of a {problem} problem are no single answers"
        raise DataError(what, where="task.by", remedy="task: {name: classify, by: head}")


def refuse_short(base: Any, data: Data, recipe: Recipe) -> None:
    """A longer window needs documents that reach beyond the old one, unless positions are skipped."""
    from luthier.data.batching import lengths_of

    plan, rows = base.context, data.rows["train"]
    documents = TASKS.parse(recipe.task).name == "language_model"
    if not plan or recipe.train.position_skipping or not documents or not len(rows):
        return
    longest = int(lengths_of(rows).max())
    if longest <= int(plan["from"]):
        raise DataError(
            f"the longest of {len(rows)} training rows has {longest} tokens: none reaches beyond the old window of "
            f"{plan['from']}, so nothing would be learnt about {plan['to']}",
            where="data.train",
            remedy="longer documents and data.max_length, or train.position_skipping: true",
        )


def settle_threads(recipe: Recipe) -> int:
    """Set torch's thread count (sums depend on it) and return it."""
    import psutil

    from luthier.core import libraries

    libraries.start()
    import torch

    threads = recipe.train.threads or psutil.cpu_count(logical=False) or 1
    torch.set_num_threads(threads)
    return threads
