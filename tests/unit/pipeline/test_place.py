"""Which directory a command without --run-dir means."""

import json

import pytest

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
