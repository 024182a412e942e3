"""train.shared_prefix in a run, and what `check` says of it and of the trunk cache."""

import json

import pytest

from luthier.core.errors import RecipeError
from luthier.core.events import read_jsonl
from luthier.pipeline import story
from luthier.recipe import Recipe

SYSTEM = "You are a careful assistant who answers every question about the house in one short and friendly sentence. "
RECIPE = """
data: {train: %s, max_length: 128, template: plain, split: {validation: 0.1, test: 0.1, group: none}}
method: {name: lora, r: 4, dropout: 0.0}
train: {steps: 2, batch_size: 4, threads: 1, early_stop: null, evaluate_every: never, save_every: never}
evaluate: {samples: {count: 1, max_new_tokens: 2}, generate_rows: 0, bootstrap: 100}
"""


@pytest.fixture
def text(tmp_path):
    rows = [{"prompt": f"{SYSTEM}Where is cup {i}?", "response": f"On shelf {i % 7}."} for i in range(30)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return RECIPE % file


def losses_of(recipe, folder):
    story.run(recipe, folder)
    return [event["loss"] for event in read_jsonl(folder / "events.jsonl") if event["kind"] == "train"]


def test_check_says_what_would_be_saved(text):
    plan = story.check(Recipe.parse(text, "train.shared_prefix=true"))["plan"]
    assert plan["shared_prefix"]["on"]
    assert 0.4 < plan["shared_prefix"]["saves"] < 0.85
    assert plan["trunk_cache"] == {"applies": False, "why": "the lowest layer is trained"}
    found = story.check(Recipe.parse(text, "method.layers=[-1]"))
    facts, tokens = found["plan"]["trunk_cache"], found["data"]["rows"]["train"] * 25
    assert (facts["applies"], facts["of"] - facts["layers"]) == (True, 1)
    assert facts["disk_mb"] * 1e6 > tokens * 4 * 64
    assert not found["plan"]["shared_prefix"]["on"]


def test_a_run_with_shared_prefixes_has_the_same_losses(text, tmp_path):
    plain = losses_of(Recipe.parse(text), tmp_path / "plain")
    shared = losses_of(Recipe.parse(text, "train.shared_prefix=true"), tmp_path / "shared")
    assert shared == pytest.approx(plain, abs=1e-5)
    assert shared != plain  # other products, so other rounding: the trie was used


def test_not_with_the_trunk_cache(text):
    with pytest.raises(RecipeError, match="whole rows"):
        story.check(Recipe.parse(text, "train.shared_prefix=true", "train.trunk_cache=true", "method.layers=[-1]"))
