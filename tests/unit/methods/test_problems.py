"""Regression and several labels a row, from a recipe to the metrics: losses fall, numbers are the right ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models as tiny
import numpy as np
import pytest

import luthier as lu
from luthier.core.events import read_jsonl

WORDS = ("w10", "w20", "w30")


def rows(problem: str, count: int) -> list[dict[str, Any]]:
    """Texts of six words; the value counts one word, a label says that its word is there."""
    source = np.random.default_rng(4)
    made = []
    for _ in range(count):
        there = source.random(3) < 0.5
        filler = [f"w{number}" for number in source.integers(40, 90, 3)]
        words = [word if on else "w5" for word, on in zip(WORDS, there, strict=True)] + filler
        labels = [word for word, on in zip(WORDS, there, strict=True) if on]
        made.append({"text": " ".join(words), "label": float(there.sum()) + 0.5 if problem == "regression" else labels})
    return made


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("llama", "regression"),
        ("bert", "multi"),
        pytest.param("bert", "regression", marks=pytest.mark.slow),
        pytest.param("llama", "multi", marks=pytest.mark.slow),
    ],
)
def test_it_is_learnt_and_measured(kind: str, problem: str, tmp_path: Path) -> None:
    """MSE, or BCE over labels, falls by half or more; the metrics are those of the written predictions.

    A decoder of two layers that pools its last token takes longer to look back, more rows, and all of its weights.
    """
    back = (kind, problem) == ("llama", "multi")
    method, count, steps, lr = ("full", 200, 200, 0.003) if back else ("{name: lora, r: 4}", 60, 60, 0.02)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows(problem, count))), "utf-8")
    recipe = lu.Recipe.parse(f"""
model: {{path: '{tiny.folder(kind)}', device: cpu}}
task: {{name: classify, problem: {problem}}}
data: {{train: {data}, split: {{validation: 0.1, test: 0.3, group: none}}}}
method: {method}
train: {{steps: {steps}, batch_size: 12, lr: {lr}, threads: 1, save_every: never, evaluate_every: never}}
evaluate: {{samples: {{count: 0}}, bootstrap: 100}}
""")
    run = lu.run(recipe, run_dir=tmp_path / "run")
    base, tuned = run.metrics["base"], run.metrics["tuned"]
    assert tuned["loss"] < 0.5 * base["loss"]
    found = list(read_jsonl(tmp_path / "run" / "evaluation" / "predictions.jsonl"))
    assert len(found) == 0.3 * count
    adapted = lu.load(tmp_path / "run")
    assert adapted.problem == problem
    if problem == "regression":
        truth, said = (np.array([float(one[key]) for one in found]) for key in ("target", "tuned"))
        assert tuned["mse"] == pytest.approx(float(((said - truth) ** 2).mean()), rel=1e-4)
        assert tuned["loss"] == pytest.approx(tuned["mse"], rel=1e-4)
        assert tuned["pearson"] == pytest.approx(float(np.corrcoef(said, truth)[0, 1]), rel=1e-3)
        return
    truth, said = ([set(one[key]) for one in found] for key in ("target", "tuned"))
    assert tuned["accuracy"] == pytest.approx(float(np.mean([a == b for a, b in zip(truth, said, strict=True)])))
    each = []
    for word in WORDS:
        both = sum(word in a and word in b for a, b in zip(truth, said, strict=True))
        each.append(2 * both / max(1, sum(word in a for a in truth) + sum(word in b for b in said)))
    assert tuned["f1_macro"] == pytest.approx(float(np.mean(each)))
    assert tuned["f1_macro"] > 0.8
