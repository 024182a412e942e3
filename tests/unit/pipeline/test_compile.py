"""train.compile in a run. What torch makes of a layer is tested in tests/unit/models/test_compiled.py."""

import pytest
import torch

from luthier.core.events import read_jsonl
from luthier.pipeline import story
from luthier.recipe import Recipe

RECIPE = """
data: {train: builtin, max_rows: 40, max_length: 128, split: {validation: 0.1, test: 0.1}}
method: {name: lora, r: 4, dropout: 0.1}
train: {steps: 2, batch_size: 4, threads: 1, early_stop: null, evaluate_every: never, save_every: never}
evaluate: {samples: {count: 1, max_new_tokens: 2}, generate_rows: 0, bootstrap: 100}
"""


def told(recipe, folder):
    run = story.run(recipe, folder)
    events = list(read_jsonl(folder / "events.jsonl"))
    losses = [event["loss"] for event in events if event["kind"] == "train"]
    return losses, [event for event in events if event["kind"] == "compiled"], run


def test_a_run_with_compiled_layers_has_the_same_losses(tmp_path, monkeypatch):
    called = []

    def compile_layer(exact, **options):
        return lambda *given, **named: called.append(options["dynamic"]) or exact(*given, **named)

    monkeypatch.setattr(torch, "compile", compile_layer)
    plain, nothing, _ = told(Recipe.parse(RECIPE), tmp_path / "plain")
    assert not called  # auto: two steps never pay for a compiler
    assert not nothing
    losses, events, _ = told(Recipe.parse(RECIPE, "train.compile=on"), tmp_path / "compiled")
    assert losses == pytest.approx(plain, abs=1e-6)
    layers = events[0]["layers"]
    assert events[0]["difference"] < 1e-6
    assert called == [True] * layers * (1 + 2)  # the check, and two steps; neither evaluation nor samples
