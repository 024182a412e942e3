"""A setting that the task's loss has no place for is refused by its key, before anything loads."""

import pytest

from luthier.core.errors import RecipeError
from luthier.pipeline import prepare
from luthier.recipe import Recipe
from luthier.tasks import TASKS

HEAD = "task: {name: classify}\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (HEAD + "train: {z_loss: 0.1}", "train.z_loss"),
        ("task: {name: classify, problem: multi}\ntrain: {label_smoothing: 0.1}", "train.label_smoothing"),
        ("task: {name: classify, problem: regression}\ntrain: {label_smoothing: 0.1}", "train.label_smoothing"),
        ("stages: [{task: classify}]\ntrain: {z_loss: 0.1}", "train.z_loss"),
    ],
)
def test_the_recipe_alone_shows_it(text, key):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(text)
    (problem,) = error.value.problems
    assert key in problem.where
    assert "does nothing here" in problem.what
    assert problem.remedy == f"{key}: 0"


@pytest.mark.parametrize("problem", ["multi", "regression"])
def test_labels_that_the_data_shows_to_be_others_are_refused_before_the_model_loads(problem):
    recipe = Recipe.parse(HEAD + "model: {path: nowhere}\ntrain: {label_smoothing: 0.1}")
    with pytest.raises(RecipeError, match="label_smoothing does nothing here") as error:
        prepare.load_model(recipe, TASKS.parse(recipe.task), ("a", "b"), problem)
    assert error.value.problems[0].where == "train.label_smoothing"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "train: {label_smoothing: 0.1}",
        "task: {name: classify, by: likelihood}\ntrain: {z_loss: 0.1, label_smoothing: 0.1}",
        "train: {z_loss: 0.1, label_smoothing: 0.1}",
    ],
)
def test_what_acts_is_taken(text):
    assert Recipe.parse(text).without_effect("single") == []
