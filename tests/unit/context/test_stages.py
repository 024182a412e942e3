"""Stages in one run, killed and continued; windows that grow; positions that are skipped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier.adapted import load
from luthier.context.pose import Skipping, skipped
from luthier.core.errors import DataError, RecipeError
from luthier.core.types import Row
from luthier.data.batching import BatchPlan
from luthier.engine.batch import from_rows
from luthier.pipeline import stages, story
from luthier.recipe import Recipe

TRAIN = {"steps": 3, "batch_tokens": 256, "lr": 1e-2, "save_every": 1, "evaluate_every": 2, "threads": 1}
METHOD = {"name": "lora", "r": 2, "train_norms": True, "train_embeddings": True}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "docs.jsonl"
    source = np.random.default_rng(0)
    rows = ({"text": " ".join(f"w{i}" for i in source.integers(0, 90, 150))} for _ in range(24))
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def recipe_of(folder, text, *given, **also):
    values = {
        "model": {"path": str(folder)}, "task": "language_model", "method": METHOD, "train": TRAIN,
        "data": {"train": str(text), "template": "plain", "split": {"validation": 2, "test": 2, "group": "none"}},
        "evaluate": {"samples": {"count": 0}}, "stages": list(given),
    }  # fmt: skip
    return Recipe(**{**values, **also})


def growing(name="yarn", *lengths, **more):
    return [{"context": {"name": name, "length": length, **more}} for length in lengths]


def tell(recipe, where):
    """The run, whatever its health says of three steps on noise."""
    from luthier.core.errors import GateFailed

    with contextlib.suppress(GateFailed):
        story.run(recipe, where)


def test_a_stage_is_the_recipe_with_its_changes():
    recipe = Recipe.parse("""
train: {epochs: 2, lr: 1e-3, batch_tokens: 512}
stages:
  - {task: language_model, context: {name: yarn, length: 768}, train: {steps: 5, lr: 1e-5}}
  - {data: {max_length: 300}, train: {schedule: {name: linear}}}
""")
    one, two = recipe.at_stage(0), recipe.at_stage(1)
    assert (one.task, one.train.steps, one.train.epochs, one.train.lr) == ("language_model", 5, None, 1e-5)
    assert (one.data.max_length, one.train.batch_tokens) == (768, 512), "rows as long as the window, updates as large"
    assert (two.task, two.train.epochs, two.data.max_length, two.context) == ("instruct", 2, 300, "none")
    assert two.train.schedule.name == "linear", "a setting inside a setting"
    assert recipe.fingerprint() != two.fingerprint()
    assert Recipe.parse(recipe.dump()) == recipe


@pytest.mark.parametrize(
    ("stage", "said"),
    [("{train: {lrr: 1}}", "unknown key 'lrr'"), ("{context: {name: yarnn, length: 9}}", "did you mean 'yarn'"),
     ("{data: {max_length: -1}}", "greater than 1"), ("{trains: {}}", "unknown key 'trains'")],
)  # fmt: skip
def test_typos_in_a_stage_are_told_before_anything_is_loaded(stage, said):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(f"stages: [{stage}]")
    assert said in str(caught.value)


@pytest.fixture(scope="session")
def whole(folders, text, tmp_path_factory):
    """An undisturbed run of three growing windows."""
    where = tmp_path_factory.mktemp("whole") / "run"
    tell(recipe_of(folders("llama"), text, *growing("yarn", 96, 128, 144)), where)
    return where


def test_c6_growing_windows_in_one_run(whole):
    events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    for number, length in ((1, 96), (2, 128)):
        status = json.loads((whole / "stages" / str(number) / "status.json").read_text())
        assert (status["state"], status["step"], status["context"]["to"]) == ("finished", 3, length)
    assert json.loads((whole / "status.json").read_text())["state"] == "finished"
    plans = [event["plan"]["to"] for event in events if event["kind"] == "context"]
    assert plans == [144], "the run's own log is that of the last stage"
    report = json.loads((whole / "report" / "report.json").read_text())
    assert [one["window"] for one in report["stages"]] == [96, 128]
    assert load(whole).base.anatomy.window == 144
    window = json.loads((whole / "evaluation" / "window.json").read_text())
    for arm in ("base", "untuned", "tuned", "own_window_only"):
        assert window[arm].keys() >= {"0-32", "32-64"}
    assert window["base"]["0-32"] == window["own_window_only"]["0-32"] != window["untuned"]["0-32"]
    assert window["untuned"] != window["tuned"]
    health = {one["name"]: one for one in json.loads((whole / "health.json").read_text())["diagnoses"]}
    assert health["window_unused"]["status"] == "ok"
    assert health["window_unused"]["value"] == window["attention"]["tuned"]["mean"]["far"] > 0.01


def test_c6_tokens_per_update_stay_constant(whole):
    for place in (whole / "stages" / "1", whole / "stages" / "2", whole):
        events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
        tokens = [event["tokens"] for event in events if event["kind"] == "train"]
        assert len(tokens) == 3
        assert all(128 <= count <= 256 for count in tokens)


def test_a_stage_begins_with_the_weights_of_the_one_before(whole):
    from luthier.core.rundir import RunDir

    first = stages.weights_of(RunDir(whole / "stages" / "1"))
    second = load_file(whole / "stages" / "2" / "checkpoints" / "step-000001" / "weights.safetensors")
    moved = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert 0 < moved < 0.02, "one step of 1e-2 away, not a fresh start"


def test_killed_in_the_second_stage_it_ends_bitwise_the_same(folders, text, whole, tmp_path):
    where = tmp_path / "run"
    recipe = recipe_of(folders("llama"), text, *growing("yarn", 96, 128, 144))
    child = os.fork()
    if child == 0:

        def die(record):
            if record["kind"] == "train" and (where / "stages" / "2" / "events.jsonl").exists() and record["step"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.set_num_threads(1)
        story.run(recipe, where, [die])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert json.loads((where / "stages" / "1" / "status.json").read_text())["state"] == "finished"
    began = (where / "stages" / "1" / "events.jsonl").read_bytes()
    tell(recipe, where)
    assert (where / "stages" / "1" / "events.jsonl").read_bytes() == began, "the first stage is not trained again"
    ours, theirs = (load_file(next((place / "adapter").glob("*.safetensors"))) for place in (where, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_kill_9_from_outside_in_the_middle_of_stage_2(folders, text, whole, tmp_path):
    """As a user would see it: `luthier run` killed while it trains stage 2, the same command again."""
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_of(folders("llama"), text, *growing("yarn", 96, 128, 144)).dump())
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    for attempt in range(3):  # on a busy machine the stage may end before the signal is sent
        where = tmp_path / f"run{attempt}"
        words = [sys.executable, "-m", "luthier", "run", str(file), "--run-dir", str(where)]
        child = subprocess.Popen(words, **quiet)
        events, end = where / "stages" / "2" / "events.jsonl", time.monotonic() + 120
        while not (events.is_file() and b'"train"' in events.read_bytes()):
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.005)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        if json.loads((where / "stages" / "2" / "status.json").read_text())["state"] != "finished":
            break
    else:
        pytest.fail("never killed in the middle of stage 2")
    assert subprocess.run(words, check=False, **quiet).returncode in (0, 1)  # 1: health of three steps on noise
    ours, theirs = (load_file(next((place / "adapter").glob("*.safetensors"))) for place in (where, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (where / "evaluation" / "window.json").read_text() == (whole / "evaluation" / "window.json").read_text()


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_tables_grow_from_stage_to_stage(folders, text, tmp_path, kind):
    short = {**TRAIN, "steps": 2}
    recipe = recipe_of(folders(kind), text, *growing("learned", 96, 128, how="tile"), train=short)
    tell(recipe, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.base.anatomy.window == 128
    ids = torch.arange(128)[None] % 90 + 3
    with torch.no_grad():
        assert torch.isfinite(again.base.model(input_ids=ids).logits).all()
    assert again.generate("w1 w2", max_new_tokens=2) is not None


def test_c5_language_modelling_then_the_task(folders, text, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"prompt": f"w{i} w3", "response": f"w{i}"}) for i in range(40)))
    first = {"task": "language_model", "context": {"name": "yarn", "length": 128}, "data": {"train": str(text)}}
    second = {"task": "instruct", "data": {"train": str(pairs)}, "train": {"steps": 2}}
    tell(recipe_of(folders("llama"), text, first, second), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "adapter" / "luthier.json").read_text())
    assert found["task"]["name"] == "instruct"
    assert found["context"] == {}


def test_documents_inside_the_old_window_are_refused_with_the_number(folders, tmp_path):
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"text": f"w{i} " * 20}) for i in range(24)))
    recipe = recipe_of(folders("llama"), short, *growing("yarn", 128))
    with pytest.raises(DataError, match=r"the longest of 20 training rows has 2\d tokens: none reaches beyond"):
        story.run(recipe, tmp_path / "run")


def test_pose_reaches_positions_of_the_new_window():
    rows = [Row(f"r{i}", np.arange(40), np.arange(40)) for i in range(16)]
    batch = from_rows(rows)
    made = skipped(batch, 256, seed=1, epoch=0)
    assert torch.equal(made.input_ids, batch.input_ids)
    assert torch.equal(made.position_ids, skipped(batch, 256, seed=1, epoch=0).position_ids)
    assert not torch.equal(made.position_ids, skipped(batch, 256, seed=1, epoch=1).position_ids)
    jumps = []
    for start in range(0, 640, 40):
        positions = made.position_ids[start : start + 40]
        steps = positions.diff()
        assert positions[0] == 0
        assert (steps >= 1).all()
        assert (steps > 1).sum() <= 1
        jumps.append(int(positions[-1]))
    assert 200 < max(jumps) < 256
    plan = BatchPlan(rows, batch_tokens=160, seed=0)
    groups = list(Skipping(plan, 256, 0).groups(0))
    assert len(groups) == plan.steps(0)
    assert torch.equal(next(iter(Skipping(plan, 256, 0).groups(0, 2)))[0].position_ids, groups[2][0].position_ids)


def test_pose_trains_a_long_window_with_short_rows(folders, text, tmp_path):
    train = {**TRAIN, "position_skipping": True}
    recipe = recipe_of(
        folders("llama"), text, context={"name": "yarn", "length": 256}, train=train,
        data={"train": str(text), "template": "plain", "max_length": 48,
              "split": {"validation": 2, "test": 2, "group": "none"}},
    )  # fmt: skip
    tell(recipe, tmp_path / "run")
    assert load(tmp_path / "run").base.anatomy.window == 256
    with pytest.raises(RecipeError, match="without a longer window"):
        story.run(recipe.model_copy(update={"context": "none"}), tmp_path / "other")


def test_check_adds_up_what_all_stages_take(folders, text):
    recipe = recipe_of(folders("llama"), text, *growing("yarn", 96, 128))
    found = story.check(recipe)
    plans = [one["plan"] for one in found["stages"]]
    assert found["plan"]["steps"] == 6
    assert found["plan"]["training_s"] == pytest.approx(sum(plan["training_s"] for plan in plans), abs=0.06)
    assert found["plan"]["memory_mb"] == max(plan["memory_mb"] for plan in plans)
