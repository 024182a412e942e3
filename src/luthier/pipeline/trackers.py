"""Sends the numbers of a run to the trackers that the user already has (`report.report_to`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.core.errors import RecipeError
from luthier.core.events import Listener
from luthier.core.rundir import RunDir
from luthier.recipe import Recipe

PROJECT = "luthier"
Log = Callable[[Mapping[str, float], int], None]


def listeners(recipe: Recipe, run: RunDir) -> list[Listener]:
    """One per tracker. RecipeError, before anything is written, for one that is not installed."""
    return [_listener(OPENERS[name](recipe, run)) for name in recipe.report.report_to]


def refuse_missing(names: Sequence[str]) -> None:
    """RecipeError with the pip line for trackers that cannot be imported."""
    for name in names:
        _module(name)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        where, remedy = "report.report_to", f"pip install {name}"
        raise RecipeError(f"the tracker {name} is not installed", where=where, remedy=remedy) from None


def _listener(log: Log) -> Listener:
    def listen(record: dict[str, Any]) -> None:
        kind, step = record.get("kind"), record.get("step")
        if kind not in ("train", "validate") or not isinstance(step, int):
            return
        numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "time")}
        log({f"{kind}/{name}": value for name, value in numbers.items()}, step)

    return listen


def _tensorboard(recipe: Recipe, run: RunDir) -> Log:
    _module("tensorboard")
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(log_dir=str(run.path / "tensorboard"))

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


def _mlflow(recipe: Recipe, run: RunDir) -> Log:
    module = _module("mlflow")
    module.set_experiment(PROJECT)
    module.start_run(run_name=run.path.name)
    module.log_params({"method": str(recipe.method), "model": recipe.model.path, "recipe": recipe.fingerprint()})
    return lambda values, step: module.log_metrics(dict(values), step=step)


def _like_wandb(name: str) -> Callable[[Recipe, RunDir], Log]:
    def opened(recipe: Recipe, run: RunDir) -> Log:
        module = _module(name)
        module.init(project=PROJECT, name=run.path.name, config=recipe.model_dump(mode="json"))
        return lambda values, step: module.log(dict(values), step=step)

    return opened


OPENERS: dict[str, Callable[[Recipe, RunDir], Log]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _like_wandb("wandb"),
    "trackio": _like_wandb("trackio"),
}
"""trackio speaks wandb's interface."""
