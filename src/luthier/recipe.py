"""The recipe: what a run shall do. Composes the settings of every room; only `pipeline.py` sees all of it.

recipe = Recipe.load("recipe.yaml", "train.lr=2e-4", "method.r=16")
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from luthier.context import CONTEXTS
from luthier.core import strict_yaml
from luthier.core.errors import LuthierError, Problem, RecipeError
from luthier.core.fingerprint import of_value
from luthier.core.plugin import load_plugin
from luthier.core.settings import Settings
from luthier.data.augment import AUGMENTERS
from luthier.data.settings import AugmentSpec, DataSettings
from luthier.evaluate.settings import EvaluateSettings
from luthier.methods import METHODS
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS
from luthier.train.settings import TrainSettings

Spec = str | dict[str, Any]
"""`lora` or `{name: lora, r: 16}`: a member of a family with its settings."""


class ReportSettings(Settings):
    """How the report is written."""

    language: Literal["en", "zh"] = "en"
    report_to: list[Literal["tensorboard", "trackio", "mlflow", "wandb"]] = Field(default_factory=list)
    """Trackers that get the same events; each must be installed."""


class Stage(Settings):
    """One of several trainings in a row; what it does not name is the recipe's own."""

    task: Spec | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    """Settings of `data:` that are others in this stage."""
    context: Spec | None = None
    """The window of this stage, counted from the base's own: 1.5 ×, 2 ×, 4 × of it in one stage after the other."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of `train:` that are others in this stage."""


class Recipe(Settings):
    """Everything that decides a run."""

    model: ModelSettings = ModelSettings()
    task: Spec = "instruct"
    """instruct | classify | language_model"""
    data: DataSettings = DataSettings()
    augment: list[AugmentSpec] = Field(default_factory=list)
    """Augmenters of the training inputs."""
    method: Spec = "lora"
    """lora | prefix | bottleneck | full | …, with its settings: {name: lora, r: 8}"""
    context: Spec = "none"
    """none, or a window extension: {name: yarn, length: 8192}"""
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    seed: int = Field(42, ge=0, lt=2**53)
    stages: list[Stage] = Field(default_factory=list)
    """Trainings in a row, each on the weights of the one before: [{task: language_model, train: {lr: 1e-5}}, {}]."""
    plugins: list[str] = Field(default_factory=list)
    """Python files of your own that register family members. They run with your rights."""

    @model_validator(mode="before")
    @classmethod
    def _run_plugins(cls, values: Any) -> Any:
        for plugin in values.get("plugins") or () if isinstance(values, dict) else ():
            load_plugin(Path(str(plugin)))
        return values

    @classmethod
    def load(cls, path: str | Path, *overrides: str) -> Recipe:
        """Read a recipe file; `overrides` are `key.path=value` with YAML values. RecipeError names all faults."""
        file = Path(path)
        if not file.is_file():
            raise RecipeError(f"no recipe at {path}", where=str(path), remedy=f"luthier new {path}")
        try:
            text = file.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecipeError(f"not UTF-8 at byte {error.start}", where=str(path), remedy="save as UTF-8") from None
        document = strict_yaml.load(text, name=file.name)
        return cls.build(document, overrides)

    @classmethod
    def parse(cls, text: str, *overrides: str) -> Recipe:
        """The same from a string."""
        return cls.build(strict_yaml.load(text), overrides)

    @classmethod
    def build(cls, document: strict_yaml.Document, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
        """Validate a parsed document. All problems are told at once."""
        for override in overrides:
            _apply(document, override)
        try:
            recipe = cls(**document.value)
        except ValidationError as error:
            problems = [_problem(item, document) for item in error.errors()]
            raise RecipeError("the recipe has faults", problems=_unique(problems)) from None
        except TypeError:
            raise RecipeError("a recipe's keys are words", where=document.name) from None
        recipe._parse_members(document)
        return recipe

    def _parse_members(self, document: strict_yaml.Document) -> None:
        """Resolve every name in a family now, so that a typo is told before anything is loaded."""
        specs: list[tuple[Any, Any, str]] = [(METHODS, self.method, "method"), (TASKS, self.task, "task")]
        specs += [(AUGMENTERS, spec, f"augment.{i}") for i, spec in enumerate(self.augment)]
        if self.context != "none":
            specs.append((CONTEXTS, self.context, "context"))
        problems: list[Problem] = []
        for family, spec, key in specs:
            try:
                family.parse(spec)
            except LuthierError as error:
                for item in error.problems:
                    tail = item.where.partition(".")[2]
                    where = document.where(f"{key}.{tail}" if tail else key)
                    problems.append(Problem(item.what, where, item.remedy))
        if not problems:
            problems += [
                Problem(what, document.where(key), remedy) for what, key, remedy in self.without_effect("auto")
            ]
        padded = self.train.engine == "plain"  # with auto, the layout is known when the model is
        recomputed = self.train.activation_checkpointing and padded and not problems
        if recomputed and not getattr(METHODS.parse(self.method), "supports_activation_checkpointing", True):
            what = "a prefix is lost when padded layers are recomputed (activation checkpointing)"
            remedy = "train.engine: auto, train.activation_checkpointing: false, or method: prompt or lora"
            problems.append(Problem(what, document.where("train.activation_checkpointing"), remedy))
        if problems:
            raise RecipeError("the recipe has faults", problems=problems)
        for index in range(len(self.stages)):
            self.at_stage(index)._parse_members(document)

    def without_effect(self, problem: str) -> list[tuple[str, str, str]]:
        """(what, key, remedy) of settings that are switched on and that the task's loss would ignore.

        `problem` is the kind of labels that the data showed; auto before it was read.
        """
        task: Any = TASKS.parse(self.task)
        asked = getattr(getattr(task, "params", None), "problem", "auto")
        unused: dict[str, str] = getattr(task, "unused", lambda kind: {})(asked if problem == "auto" else problem)
        return [
            (f"{key} does nothing here: {why}", f"train.{key}", f"train.{key}: 0")
            for key, why in unused.items()
            if getattr(self.train, key)
        ]

    def at_stage(self, index: int) -> Recipe:
        """The recipe of one stage, without stages. RecipeError for settings that do not exist."""
        stage, values = self.stages[index], self.model_dump(mode="json")
        given = {"data": stage.data, "train": stage.train}
        for one, other in (("steps", "epochs"), ("batch_size", "batch_tokens")):
            if one in stage.train or other in stage.train:
                values["train"] |= {one: None, other: None}
        for key, changes in given.items():
            values[key] = _merged(values[key], changes)
        for key in ("task", "context"):
            if getattr(stage, key) is not None:
                values[key] = getattr(stage, key)
        length = values["context"].get("length") if isinstance(values["context"], dict) else None
        whole = stage.context is not None and not values["train"]["position_skipping"]
        if length and whole and "max_length" not in stage.data:
            values["data"]["max_length"] = length
        try:
            return Recipe(**{**values, "stages": []})
        except ValidationError as error:
            document = strict_yaml.Document({}, {}, f"stages.{index}")
            problems = [_problem(item, document) for item in error.errors()]
            shown = [Problem(p.what, f"stages.{index}: {p.where}", p.remedy) for p in problems]
            raise RecipeError(f"stage {index + 1} of the recipe has faults", problems=_unique(shown)) from None

    def dump(self) -> str:
        """YAML with every default filled in; loading it gives an equal recipe."""
        return strict_yaml.dump(self.model_dump(mode="json"))

    def fingerprint(self) -> str:
        """Changes when anything that decides the result changes."""
        return of_value(self.result_relevant())

    def result_relevant(self) -> dict[str, Any]:
        """The part of the recipe that decides the result (not how it is reported or how much is kept)."""
        values = self.model_dump(mode="json")
        values.pop("report")
        for key in ("keep_checkpoints", "max_disk", "save_every"):
            values["train"].pop(key)
        values["data"].pop("cache")
        if not values["data"]["canaries"]:
            values["data"].pop("canaries")  # a recipe without any is what it was before there were some
        return values

    @classmethod
    def schema(cls) -> dict[str, Any]:  # type: ignore[override]  # the name that pydantic gave up
        """JSON Schema for editors."""
        schema = cls.model_json_schema()
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "luthier recipe", **schema}


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The changes laid over the values, mappings key by key."""
    made = dict(values)
    for key, value in changes.items():
        old = made.get(key)
        made[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return made


def _apply(document: strict_yaml.Document, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"{override!r} is not key.path=value", remedy="for example train.lr=2e-4")
    value = strict_yaml.load(f"value: {text}", name=f"override {override!r}").value["value"]
    keys = path.strip().split(".")
    here = document.value
    for index, key in enumerate(keys[:-1]):
        inner = here.get(key)
        if isinstance(inner, str) and key in ("method", "context", "task"):
            inner = {"name": inner}
        if inner is None:
            default = Recipe.model_fields[key].default if index == 0 and key in Recipe.model_fields else None
            inner = {"name": default} if isinstance(default, str) else {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{'.'.join(keys[: index + 1])} is not a mapping", where=f"override {override!r}")
        here[key] = inner
        here = inner
    here[keys[-1]] = value
    document.lines.pop(path, None)


def _known_paths(model: type[Settings] = Recipe, prefix: str = "") -> list[str]:
    paths = []
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        paths.append(path)
        inner = info.annotation
        for option in (inner, *getattr(inner, "__args__", ())):
            if isinstance(option, type) and issubclass(option, Settings) and option is not Stage:
                paths += _known_paths(option, f"{path}.")
    return paths


def _problem(item: Any, document: strict_yaml.Document) -> Problem:
    path = ".".join(str(part) for part in item["loc"] if not (isinstance(part, str) and "[" in part))
    where = document.where(path)
    if item["type"] != "extra_forbidden":
        what = item["msg"].removeprefix("Value error, ")
        given = item.get("input")
        shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
        return Problem(what + shown, where)
    leaf, parent = path.rpartition(".")[2], path.rpartition(".")[0]
    known = _known_paths()
    siblings = {p.rpartition(".")[2] for p in known if p.rpartition(".")[0] == parent}
    elsewhere = sorted({p.rpartition(".")[0] for p in known if p.rpartition(".")[2] == leaf})
    if leaf in ("r", "alpha", "dropout", "targets") and not parent:
        elsewhere.append("method")
    close = difflib.get_close_matches(leaf, siblings, 1, cutoff=0.6)
    anywhere = {p.rpartition(".")[2]: p for p in reversed(known)}
    far = difflib.get_close_matches(leaf, anywhere, 1, cutoff=0.75)
    if elsewhere:
        remedy = " or ".join(
            f"it belongs under `{place}.`" if place else "it belongs at the top" for place in elsewhere
        )
        remedy += f", or did you mean {close[0]!r}?" if close else ""
    elif close:
        remedy = f"did you mean {close[0]!r}?"
    elif far:
        remedy = f"did you mean {anywhere[far[0]]!r}?"
    else:
        remedy = f"known here: {', '.join(sorted(siblings))}"
    return Problem(f"unknown key {leaf!r}", where, remedy)


def _unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))
