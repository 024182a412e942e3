"""Which directory a command without --run-dir means."""

import json

import pytest

from luthier.core.errors import DataError, RecipeError
from luthier.core.fingerprint import of_file
from luthier.pipeline import place
from luthier.recipe import Recipe


@pytest.fixture
def recipe():
    return Recipe.parse("data: {train: rows.json}")


def a_run(root, recipe, state, stamp="20260101-000000"):
    folder = root / f"{stamp}-builtin-lora-{recipe.fingerprint()[:8]}"
    (folder / "data").mkdir(parents=True)
    data = root / "rows.json"
    data.write_text("[]")
    (folder / "status.json").write_text(json.dumps({"state": state}))
    sources = [{"path": str(data), "sha256": of_file(data)}]
    (folder / "data" / "manifest.json").write_text(json.dumps({"sources": sources}))
    return folder


@pytest.mark.parametrize("state", ["running", "interrupted", "finished"])
def test_the_same_recipe_means_the_same_run(tmp_path, recipe, state):
    folder = a_run(tmp_path, recipe, state)
    assert place.choose(recipe, None, tmp_path).path == folder


def test_a_failed_run_and_another_recipe_get_a_new_one(tmp_path, recipe):
    folder = a_run(tmp_path, recipe, "failed")
    assert place.choose(recipe, None, tmp_path).path != folder
    other = Recipe.parse("{data: {train: rows.json}, seed: 7}")
    assert place.choose(other, None, tmp_path).path != folder


def test_a_finished_run_on_data_that_changed_since_is_another_run(tmp_path, recipe):
    folder = a_run(tmp_path, recipe, "finished")
    (tmp_path / "rows.json").write_text("[1]")
    assert place.choose(recipe, None, tmp_path).path != folder


def test_a_failed_run_that_has_a_checkpoint_goes_on(tmp_path, recipe):
    """A full disk ends a run with exit 5 and "run the same command": that must not begin from the start."""
    for number, inner in enumerate(("checkpoints", "stages/1/checkpoints")):
        root = tmp_path / str(number)
        folder = a_run(root, recipe, "failed")
        (folder / inner).mkdir(parents=True)
        assert place.choose(recipe, None, root).path != folder
        (folder / inner / "step-000004").mkdir()
        assert place.choose(recipe, None, root).path == folder


def test_a_run_killed_before_its_recipe_was_written_begins_again(tmp_path, recipe):
    for present in ([".lock"], [".lock", "recipe.yaml"], [".lock", ".staging-7-recipe.yaml"]):
        folder = tmp_path / str(len(present)) / present[-1]
        folder.mkdir(parents=True)
        for name in present:
            (folder / name).write_text("")
        assert place.choose(recipe, folder).path == folder


@pytest.mark.parametrize("present", [["recipe.yaml"], [".lock", "letters.txt"], [".lock", "recipe.yaml", "data"]])
def test_a_folder_with_anything_else_is_not_taken(tmp_path, recipe, present):
    for name in present:
        (tmp_path / name).write_text("mine")
    with pytest.raises(RecipeError, match="not empty"):
        place.choose(recipe, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"state": "finis'])
def test_a_damaged_status_is_an_unfinished_run(tmp_path, recipe, text):
    folder = a_run(tmp_path, recipe, "finished")
    (folder / "recipe.resolved.yaml").write_text(recipe.dump())
    (folder / "status.json").write_text(text)
    run = place.choose(recipe, folder)
    assert run.state in ("running", "absent")
    run.write_status("running", step=3)
    assert run.state == "running"
    (folder / "data" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        place.same_data(run, {})
