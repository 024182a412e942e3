"""The grid, its directory, and whole sweeps with a stand-in for the training process where only order matters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import app, console
from luthier.core.errors import MissingExtra, RecipeError
from luthier.sweep import engines, result
from luthier.sweep.grid import axes, points, split_values
from luthier.sweep.plan import open_plan
from luthier.sweep.process import Processes

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
RECIPE = """\
model: {path: builtin}
task: instruct
data: {train: builtin, max_length: 96, max_rows: 60}
method: {name: lora, r: 2}
train: {steps: 2, batch_size: 2}
evaluate: {samples: {count: 1, max_new_tokens: 4}}
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def test_values():
    assert split_values("1e-3,1e-4") == ["1e-3", "1e-4"]
    assert split_values("{name: lora, r: 4},prefix") == ["{name: lora, r: 4}", "prefix"]
    assert split_values("[a, b],'c,d'") == ["[a, b]", "'c,d'"]


def test_every_combination_once(recipe):
    found = points(recipe, ["train.lr=1e-3,1e-4", "method.r=2,4,8", "seed=7"])
    assert [one.varied for one in found][:4] == [
        {"train.lr": "1e-3", "method.r": "2"},
        {"train.lr": "1e-3", "method.r": "4"},
        {"train.lr": "1e-3", "method.r": "8"},
        {"train.lr": "1e-4", "method.r": "2"},
    ]
    assert len({one.name for one in found}) == len(found) == 6
    assert all("seed=7" in one.overrides for one in found)


@pytest.mark.parametrize("words", [["lr"], ["a=1", "a=2"], ["a=1,"], ["a=1,1"], ["=3"]])
def test_bad_axes(words):
    with pytest.raises(RecipeError):
        axes(words)


def test_all_points_are_checked_before_any_runs(recipe, tmp_path):
    with pytest.raises(RecipeError) as caught:
        points(recipe, ["method.r=4,0,-1", "train.learning=1"])
    assert len(caught.value.problems) >= 3
    console.forget()
    code = app.outcome(["sweep", str(recipe), "method.r=4,0", "--dir", str(tmp_path / "s")])
    assert code == 2
    assert not (tmp_path / "s").exists()
    with pytest.raises(RecipeError, match="combinations"):
        points(recipe, ["seed=" + ",".join(map(str, range(1001)))])


def test_a_missing_ray_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"the engine ray needs the extra 'ray'") as caught:
        engines.check("ray")
    assert caught.value.problems[0].remedy == 'pip install "luthier[ray]"'
    with pytest.raises(RecipeError, match="no engine"):
        engines.check("slurm")


def test_the_same_command_finds_its_directory(recipe, tmp_path):
    grid = points(recipe, ["seed=1,2"])
    first = open_plan(recipe, grid, tmp_path / "s", threads=1)
    assert open_plan(recipe, grid, tmp_path / "s", threads=4).threads == 1 == first.threads
    with pytest.raises(RecipeError, match="another recipe or grid"):
        open_plan(recipe, points(recipe, ["seed=1,3"]), tmp_path / "s", 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(RecipeError, match="not empty"):
        open_plan(recipe, grid, tmp_path / "full", 1)


def test_threads_are_explicit(recipe, tmp_path, monkeypatch):
    plan = open_plan(recipe, points(recipe, ["seed=1"]), tmp_path / "s", 3)
    assert "train.threads=3" in plan.words(plan.points[0])
    seen = tmp_path / "seen"
    code = f"import os, pathlib; pathlib.Path({str(seen)!r}).write_text(os.environ['OMP_NUM_THREADS'])"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **rest: real([sys.executable, "-c", code], **rest))
    assert Processes(3).run(["run"], tmp_path / "log") == 0
    assert seen.read_text() == "3"


def test_exit_codes_order_and_resuming(recipe, tmp_path, monkeypatch):
    import fake_run

    plan = open_plan(recipe, points(recipe, ["seed=1,2,3"]), tmp_path / "s", 1)
    started = []

    def run(self, words, log):
        folder = Path(words[words.index("--run-dir") + 1])
        started.append(folder.name)
        if folder.name.startswith("002") and len(started) <= 3:
            return 3
        fake_run.make(folder, overfit=folder.name.startswith("001"))
        return 0

    monkeypatch.setattr(Processes, "run", run)
    codes = engines.run_all("local", plan, plan.points, 2, lambda *one: None)
    assert result.exit_code(plan, codes) == 3
    left = [point for point in plan.points if not plan.finished(point)]
    assert [point.name[:3] for point in left] == ["002"]
    codes = engines.run_all("local", plan, left, 1, lambda *one: None)
    assert result.exit_code(plan, codes) == 0
    found = result.result(plan, codes)
    losses = [line["validation_loss"] for line in found["points"]]
    assert losses == sorted(losses)
    assert found == json.loads((tmp_path / "s" / "comparison.json").read_text())
    assert len(found["comparison"]["paired"]) == 2
    assert result.exit_code(plan, {"a": 1, "b": 4, "c": 3}) == 4
    assert result.exit_code(plan, {"a": -9}) == 3


@pytest.mark.slow
def test_a_whole_sweep(recipe, tmp_path):
    """Two real runs, compared on the same rows; a second call does nothing."""
    words = [sys.executable, "-m", "luthier.cli", "sweep", str(recipe), "train.lr=1e-3,5e-3"]
    words += ["--dir", str(tmp_path / "s"), "--parallel", "2", "--json"]
    options = {"capture_output": True, "text": True, "timeout": 500, "check": False, "env": dict(os.environ)}
    done = subprocess.run(words, **options)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert [line["state"] for line in found["points"]] == ["finished", "finished"]
    assert found["comparison"]["recipe"]["train.lr"]
    assert found["comparison"]["paired"][0]["rows"] > 0
    assert "0 to do" in subprocess.run(words, **options).stderr
