"""Trackers get the numbers of every step and evaluation; a missing one is told before anything is written."""

import sys
import types

import pytest

from luthier.core.errors import RecipeError
from luthier.core.events import Emitter
from luthier.core.rundir import RunDir
from luthier.pipeline import story, trackers
from luthier.recipe import Recipe


def recipe(name):
    return Recipe.parse(f"report: {{report_to: [{name}]}}")


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_numbers_arrive(monkeypatch, tmp_path, name):
    got = []
    fake = types.ModuleType(name)
    fake.init = lambda **settings: got.append(settings["config"]["seed"])
    fake.set_experiment = fake.log_params = lambda *_: None
    fake.start_run = lambda **_: got.append(42)
    fake.log = fake.log_metrics = lambda values, step: got.append((step, values))
    monkeypatch.setitem(sys.modules, name, fake)
    emit = Emitter(*trackers.listeners(recipe(name), RunDir(tmp_path)))
    emit("stage", name="x")
    emit("train", step=3, loss=1.5, rows=["a"])
    emit("validate", step=3, loss=1.25)
    assert got == [42, (3, {"train/loss": 1.5}), (3, {"validate/loss": 1.25})]


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "tensorboard"])
def test_a_missing_one_is_refused_before_anything_is_written(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=f"{name} is not installed"):
        story.run(recipe(name), tmp_path / "run")
    assert not (tmp_path / "run").exists()
