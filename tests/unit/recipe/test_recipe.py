"""FAULTS B1, B2, B4: a wrong recipe is refused with all of its faults, each with line and remedy."""

import json

import pytest

from luthier.core.errors import RecipeError
from luthier.recipe import Recipe, _known_paths


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("trian: {lr: 1}", ["did you mean 'train'"]),
        ("lr: 1e-4", ["belongs under `train.`"]),
        ("r: 8", ["belongs under `method.`"]),
        ("train:\n  learing_rate: 1\n", ["recipe:2", "unknown key"]),
        ("train: {warmup: 0.1}", ["belongs under `train.schedule.`"]),
        ("method: {name: lorra}", ["did you mean 'lora'"]),
        ("method: {name: lora, r: 0}", ["method.r"]),
        ("train: {lr: .inf}", ["train.lr"]),
        ("train: {epochs: 2, steps: 3}", ["keep one"]),
        ("train: {epochs: -1}\nseed: -2\ndata: {max_length: 0}", ["train.epochs", "seed", "data.max_length"]),
        ("task: clasify", ["did you mean 'classify'"]),
        ("context: {name: yarn}", ["context.length"]),
        ("augment: [{name: synonym}]", ["did you mean 'synonyms'"]),
    ],
)
def test_a_wrong_recipe_says_what_where_and_how(text, hints):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    for hint in hints:
        assert hint in str(caught.value)
    assert caught.value.exit_code == 2


def test_numbers_and_overrides():
    recipe = Recipe.parse("train: {lr: 1e-4}", "train.epochs=2", "method.r=16", "data.train=x.json")
    assert recipe.train.lr == 1e-4
    assert recipe.train.epochs == 2
    assert recipe.method == {"name": "lora", "r": 16}
    assert recipe.data.train == "x.json"
    with pytest.raises(RecipeError, match=r"key\.path=value"):
        Recipe.parse("", "train.epochs")


def test_a_dump_loads_to_an_equal_recipe():
    recipe = Recipe.parse("train: {lr: 3e-5}\naugment: [swap]\nmethod: {name: lora, r: 4}")
    assert Recipe.parse(recipe.dump()) == recipe
    assert Recipe.parse(recipe.dump()).fingerprint() == recipe.fingerprint()


def test_every_key_with_one_edit_is_refused_and_found_again():
    """B1: ≥ 95 % right suggestions, none accepted."""
    right = wrong = 0
    for path in _known_paths():
        parent, _, leaf = path.rpartition(".")
        if len(leaf) < 4:
            continue
        broken = leaf[:2] + leaf[3:]
        text = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(parent.split(".")) if key)
        depth = len(parent.split(".")) if parent else 0
        with pytest.raises(RecipeError) as caught:
            Recipe.parse(f"{text}{'  ' * depth}{broken}: 1\n")
        found = repr(leaf) in str(caught.value) or f".{leaf}'" in str(caught.value)
        right, wrong = right + found, wrong + (not found)
    assert right / (right + wrong) >= 0.95


def test_schema_is_json():
    schema = json.loads(json.dumps(Recipe.schema()))
    assert schema["properties"]["train"]
    assert "Passes over the training rows" in json.dumps(schema)
