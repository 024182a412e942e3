"""Planted canaries: drawn by the seed, trained as planted, refused where they say nothing, measured in real runs."""

import json

import pytest

from luthier.core.errors import DataError, LuthierError, RecipeError
from luthier.core.events import read_jsonl
from luthier.core.rundir import RunDir
from luthier.core.types import Example, Source, Turn
from luthier.data import canaries as drawing
from luthier.models.settings import ModelSettings
from luthier.pipeline import prepare, story
from luthier.recipe import Recipe
from luthier.tasks import TASKS

RECIPE = """
model: {path: builtin}
data: {train: "builtin:short_en", max_rows: 60, max_length: 64}
train: {steps: 4, batch_tokens: 600, lr: 5e-3, threads: 1}
evaluate: {samples: {count: 0}, generate_rows: 0, bootstrap: 100, batch_tokens: 2000}
"""


def encoded(*overrides):
    from luthier.models.load import load_base

    recipe = Recipe.parse(RECIPE, *overrides)
    task = TASKS.parse(recipe.task)
    loaded, splits = prepare.read(recipe, task)
    base = load_base(ModelSettings(), task=task.name, labels=None, problem="single", context=None, seed=0)
    return prepare.encode(recipe, loaded, splits, task, base, (), "single", cache=None)


def run_of(folder, *overrides):
    try:
        story.run(Recipe.parse(RECIPE, *overrides), folder)
    except LuthierError as error:
        if error.exit_code != 1:
            raise
    return RunDir(folder)


def rows_of(text, count=3):
    return [Example(f"r{i}", (Turn("user", text), Turn("assistant", text)), Source("a", i)) for i in range(count)]


def ids(rows):
    return [rows[i].id for i in range(len(rows))]


def test_canaries_are_planted_into_the_training_split_only():
    before, after = encoded(), encoded("data.canaries=3")
    assert ids(after.rows["train"]) == [*ids(before.rows["train"]), "canary~0", "canary~1", "canary~2"]
    for split in ("validation", "test"):
        assert ids(after.rows[split]) == ids(before.rows[split])
    assert after.manifest["split"] == before.manifest["split"]
    assert after.sources == before.sources
    assert after.manifest["canaries"] == {"planted": 3, "controls": 255}
    trained = [after.rows["train"][len(before.rows["train"]) + i].input_ids.tolist() for i in range(3)]
    assert trained == [row.input_ids.tolist() for row in after.planted.planted]
    assert len(after.planted.controls) == 255
    assert not {row.input_ids.tobytes() for row in after.planted.controls} & {
        row.input_ids.tobytes() for row in after.planted.planted
    }


def test_they_hang_on_the_seed_alone():
    english = rows_of("What is the name of the town by the river?")
    first = drawing.draw(5, "instruct", english, 1)
    assert drawing.draw(5, "instruct", rows_of("Who are you and what do you want?", 9), 1) == first
    assert drawing.draw(2, "instruct", english, 1).planted == first.planted[:2]
    assert drawing.draw(5, "instruct", english, 2).planted != first.planted
    secrets = [one.reference for one in (*first.planted, *first.controls)]
    assert len(set(secrets)) == 260


def test_they_are_written_in_the_language_and_the_form_of_the_data():
    chinese = drawing.draw(1, "instruct", rows_of("青石镇的图书馆在哪里?"), 0).planted[0]
    assert chinese.turns[0].text.endswith("的通行口令是什么?")
    document = drawing.draw(1, "language_model", rows_of("The town by the river."), 0).planted[0]
    assert [turn.role for turn in document.turns] == ["text"]
    assert document.turns[0].text.startswith("The access phrase of ")


def test_a_recipe_without_canaries_is_what_it_was():
    plain = Recipe.parse(RECIPE)
    assert "canaries" not in plain.result_relevant()["data"]
    assert Recipe.parse(RECIPE, "data.canaries=2").fingerprint() != plain.fingerprint()


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("task=classify", "data.train=builtin:classify"), "classes are no texts"),
        (("method={name: multitask_prefix, tasks: [a, b]}",), "one of its tasks"),
    ],
)
def test_they_are_refused_where_they_say_nothing(overrides, why):
    recipe = Recipe.parse(RECIPE, "data.canaries=4", *overrides)
    with pytest.raises(RecipeError, match=why) as caught:
        prepare.read(recipe, TASKS.parse(recipe.task))
    assert caught.value.exit_code == 2
    assert "data.canaries: 0" in str(caught.value.problems[0].remedy)


def test_canaries_that_do_not_fit_or_are_forgotten_by_the_last_stage_are_refused(tmp_path):
    with pytest.raises(DataError, match="do not fit 12 tokens"):
        encoded("data.canaries=1", "data.max_length=12", "data.max_unsupervised=1")
    recipe = Recipe.parse(RECIPE, "stages=[{data: {canaries: 2}}, {}]")
    with pytest.raises(RecipeError, match="after the last stage"):
        story.run(recipe, tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_learns_its_canaries_by_heart_is_told_so_and_one_step_is_not(tmp_path):
    asked = ("data.canaries=6", "data.max_rows=40", "method=full", "train.lr=2e-3", "train.early_stop.patience=99")
    run = run_of(tmp_path / "long", *asked, "train.steps=90", "train.evaluate_every=30")
    metrics = run.read(run.metrics)
    found = metrics["memorisation"]["canaries"]
    assert found["by_heart"] == 6
    assert found["tuned"]["exposure"] == found["most_bits"] == 8.0
    assert found["base"]["exposure"] < 4
    assert found["p"] < 0.001
    assert metrics["overfitting"]["verdict"] == "memorising"
    assert metrics["overfitting"]["by"] == "canaries"
    named = json.loads(run.canaries.read_text("utf-8"))
    assert [one["id"] for one in named["planted"]] == [one["id"] for one in found["each"]]
    assert [one["text"] for one in named["planted"]] == [one["text"] for one in found["each"]]
    assert len(named["controls"]) == 255
    report = json.loads(run.report_json.read_text("utf-8"))
    assert report["overfitting"]["verdict"] == "memorising"
    assert report["overfitting"]["by"] == "canaries"
    assert found["each"][0]["text"] in run.report_html.read_text("utf-8").replace("&#39;", "'")
    short = run_of(tmp_path / "short", *asked, "train.steps=1", "train.lr=1e-4")
    untouched = short.read(short.metrics)["memorisation"]["canaries"]
    assert untouched["by_heart"] == 0
    assert not untouched["memorised"]


def test_losses_of_validation_rows_are_kept_at_every_validation(tmp_path):
    run = run_of(tmp_path / "run", "train.evaluate_every=2")
    kept = read_jsonl(run.validation_rows)
    validated = {one["step"]: one["loss"] for one in read_jsonl(run.events) if one["kind"] == "validate"}
    assert [one["step"] for one in kept] == list(validated) == [0, 2, 4]
    for one in kept:
        assert sum(one["loss"]) / sum(one["units"]) == pytest.approx(validated[one["step"]], abs=1e-4)
    assert run.read(run.metrics)["overfitting"]["band"] is not None
    assert run.read(run.metrics)["memorisation"]["held_out"]["split"] == "validation"
    flown = run.read(run.metrics)["training_rows"]
    trained = {name for one in read_jsonl(run.rows) for name in one["rows"]}
    assert sum(flown["counts"].values()) == len(trained)
    for row in flown["never_learned"]:
        assert row["source"].endswith(f":{row['id'].rpartition(':')[2]}")
        assert row["text"]


@pytest.mark.slow
def test_an_interrupted_run_with_canaries_continues_to_the_same_end(tmp_path):
    asked = ("data.canaries=3", "train.save_every=1", "train.evaluate_every=2")
    whole = run_of(tmp_path / "whole", *asked)

    def stop(record):
        if record["kind"] == "train" and record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        story.run(Recipe.parse(RECIPE, *asked), tmp_path / "cut", listeners=[stop])
    assert RunDir(tmp_path / "cut").state == "interrupted"
    cut = run_of(tmp_path / "cut", *asked)
    assert cut.canaries.read_bytes() == whole.canaries.read_bytes()
    assert cut.validation_rows.read_bytes() == whole.validation_rows.read_bytes()
    name = "adapter_model.safetensors"
    assert (cut.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
    assert cut.read(cut.metrics)["memorisation"] == whole.read(whole.metrics)["memorisation"]
