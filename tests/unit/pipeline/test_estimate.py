"""The estimate of `check`: from a measured pass, and near what the run then takes."""

from luthier.core.events import read_jsonl
from luthier.pipeline import story
from luthier.recipe import Recipe

RECIPE = """
data: {train: "builtin:short_en", max_rows: 200, max_length: 64}
method: {name: lora, r: 4}
train: {steps: 20, batch_tokens: 400, threads: 1}
evaluate: {samples: {count: 1, max_new_tokens: 2}, generate_rows: 0, bootstrap: 100}
"""


def test_time_memory_and_disk_are_near_the_truth(tmp_path):
    recipe = Recipe.parse(RECIPE)
    plan = story.check(recipe)["plan"]
    story.run(recipe, tmp_path / "run")
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    start = next(e for e in events if e["kind"] == "start")
    took = [e for e in events if e["kind"] == "finished"][-1]["time"] - start["time"]
    assert 0.2 < plan["training_s"] / took < 5
    kept = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
    assert kept / 3 < plan["disk_mb"] * 1e6 < kept * 6
    assert 100 < plan["memory_mb"] < 4000


def test_more_steps_take_longer():
    few, many = (
        story.check(Recipe.parse(RECIPE, f"train.steps={count}"))["plan"]["training_s"] for count in (10, 1000)
    )
    assert many > 20 * few
