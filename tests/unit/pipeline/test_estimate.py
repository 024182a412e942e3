"""The estimate of `check`: from a measured pass, and near what the run then takes."""

from types import SimpleNamespace

import torch

from luthier.core.events import read_jsonl
from luthier.pipeline import estimate, story
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


def test_later_epochs_come_from_the_trunk_cache(monkeypatch):
    """The first epoch fills it and takes as long as ever; then the group costs what it costs from the cache."""
    passes, real = [], estimate._seconds

    def seconds(adapted, group):
        trunk = adapted.base.trunk
        before = trunk.reused if trunk else 0
        real(adapted, group)
        passes.append(bool(trunk and trunk.reused > before))
        return 0.25 if passes[-1] else 1.0

    monkeypatch.setattr(estimate, "_seconds", seconds)
    settings = ("method.layers=[-1]", "train.steps=null", "train.batch_tokens=400")

    def planned(epochs, cache):
        recipe = Recipe.parse(RECIPE, *settings, f"train.epochs={epochs}", f"train.trunk_cache={cache}")
        return story.check(recipe)["plan"]["training_s"]

    once, often = planned(1, "false"), planned(9, "false")
    assert passes == [False, False] * 2
    assert planned(1, "true") == once
    cached = planned(9, "true")
    assert passes[-4:] == [False, False, False, True]
    assert 0.3 < cached / often < 0.5  # (1 + 8 · .25) / 9 of the training, and its validations


class OnGpu:
    """As much of an adapted model, a plan and data as the estimate asks for; the device is said to be a GPU."""

    device = torch.device("cuda")
    layout = "flat"

    def __init__(self, log):
        self.log, self.weight = log, torch.nn.Parameter(torch.zeros(1000))
        self.train = self.eval = lambda: None

    def parameters_by_name(self):
        return {"w": self.weight}

    def state(self):
        return {"w": self.weight.detach()}

    def loss(self, batch):
        self.log.append("pass")
        return SimpleNamespace(total=self.weight.sum())

    def groups(self, epoch):
        return iter([[SimpleNamespace(bounds=[0, 10])]])

    def steps(self, epoch):
        return 2


def test_on_a_gpu_the_plan_is_of_its_memory(monkeypatch):
    log = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda place: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda place: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda place: 7_000_000_000)
    rows = [SimpleNamespace(input_ids=[1] * 5)] * 4
    made = OnGpu(log)
    data = SimpleNamespace(rows={"train": rows, "validation": rows})
    found = estimate.estimate(Recipe.parse(RECIPE), made, made, 20, data)
    assert found["memory_mb"] == 7000 + round(2 * 4 * 1000 / 1e6)  # what torch counted, and AdamW's two moments
    assert log == ["reset", *["wait", "pass", "wait"] * 2]
    assert estimate.peak_bytes() < 7_000_000_000
