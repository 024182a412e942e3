"""Whole runs of a tiny model, planted to overfit, to end early, and to learn nothing: what metrics.json and the report
say of each."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.core.rundir import RunDir
from luthier.health.plants.world import WORDS, blank
from luthier.pipeline import story
from luthier.recipe import Recipe

RECIPE = """
model: {path: MODEL}
data: {train: TRAIN, validation: HELD, max_length: 40, template: plain, split: {test: 0, group: none}}
method: full
train: {batch_size: 25, threads: 1, save_every: never, early_stop: {patience: 99}}
evaluate: {samples: {count: 0}, generate_rows: 0, bootstrap: 100}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("planted")
    blank(folder / "model")
    return folder


def lines(folder, name, count, answer):
    """Three words are asked, three answered: by chance, or the same ones."""
    source = np.random.default_rng(len(name) + count)
    rows = []
    for _ in range(count):
        asked = source.integers(0, WORDS, 3)
        told = asked if answer == "same" else source.integers(0, WORDS, 3)
        rows.append({name: " ".join(f"w{i}" for i in words) for name, words in (("prompt", asked), ("response", told))})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows), "utf-8")
    return path


def judged(place, train, held, *settings):
    run = RunDir(place / f"run-{train.stem}")
    text = RECIPE.replace("MODEL", str(place / "model")).replace("TRAIN", str(train)).replace("HELD", str(held))
    try:
        story.run(Recipe.parse(text, *settings), run.path)
    except LuthierError as error:
        if error.exit_code != 1:
            raise
    report = json.loads(run.report_json.read_text("utf-8"))
    metrics = run.read(run.metrics)
    assert report["overfitting"]["verdict"] == metrics["overfitting"]["verdict"]
    losses = [point["loss"] for point in report["curves"]["validation"]]
    return metrics["overfitting"], losses, {one["name"]: one["status"] for one in run.read(run.health)["diagnoses"]}


@pytest.mark.slow
def test_r2_a_run_of_thirty_epochs_on_fifty_rows(place):
    rows = lines(place, "few", 50, "chance"), lines(place, "few held", 40, "chance")
    found, losses, health = judged(
        place, *rows, "train.epochs=30", "train.lr=3e-3", "train.evaluate_every=4", "train.schedule.name=constant"
    )
    assert found["verdict"] in ("overfit", "memorising")
    assert found["since"] == 4 * int(np.argmin(losses))
    assert 0 < found["since"] <= 28
    assert found["band"][0] > 0.1
    assert f"stop at step {found['since']}" in found["advice"]
    assert health["overfit"] in ("warn", "fail")


@pytest.mark.slow
def test_r2_a_run_that_ends_while_it_learns(place):
    rows = lines(place, "much", 300, "same"), lines(place, "much held", 40, "same")
    found, losses, health = judged(
        place, *rows, "train.steps=36", "train.lr=1e-3", "train.evaluate_every=12", "train.schedule.name=constant"
    )
    assert losses == sorted(losses, reverse=True)
    assert found["verdict"] == "underfit"
    assert "train longer" in found["advice"]
    assert health["overfit"] == "ok"


@pytest.mark.slow
def test_r2_a_run_with_nothing_to_learn_and_few_rows_to_judge_by_is_no_overfitting(place):
    rows = lines(place, "nothing", 900, "chance"), lines(place, "nothing held", 4, "chance")
    found, losses, health = judged(place, *rows, "train.epochs=2", "train.lr=1e-2", "train.evaluate_every=6")
    assert sum(later > earlier for earlier, later in pairwise(losses)) >= 3  # the curve rises now and then
    assert found["verdict"] in ("noisy", "healthy")
    assert found["band"][0] <= 0
    assert health["overfit"] == "ok"
