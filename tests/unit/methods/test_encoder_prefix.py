"""Virtual tokens on encoders through the whole story: trained, measured, loaded again, whatever the engine."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import models as tiny
import pytest

import luthier as lu
from luthier.core.errors import GateFailed
from luthier.evaluate.losses import row_losses
from luthier.methods import METHODS
from luthier.pipeline import later


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("method", ["prefix", "prompt", "dynamic_prefix", "{name: stack, preset: mam}"])
def test_a_classifier_is_trained_and_answers_the_same_after_loading(tmp_path: Path, method: str, engine: str) -> None:
    """The loaded adapter gives the losses that the run wrote down."""
    words = ("w5 w6", "w7 w8 w9", "w10")
    lines = [{"text": f"{words[i % 3]} w{i + 20}", "label": "abc"[i % 3]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    spec = method if method.startswith("{") else f"{{name: {method}, length: 3}}"
    recipe = lu.Recipe.parse(f"""
model: {{path: {tiny.folder("bert")}}}
task: classify
data: {{train: {tmp_path / "rows.jsonl"}, max_length: 16}}
method: {spec}
train: {{steps: 6, batch_size: 8, threads: 1, engine: {engine}, save_every: never, evaluate_every: never}}
""")
    with suppress(GateFailed):  # six steps may well call everything one class
        lu.run(recipe, run_dir=tmp_path / "run")
    run, _, again, data = later.reload(tmp_path / "run")
    metrics, health = run.read(run.metrics), run.read(run.health)
    assert row_losses(again, data.rows["test"]).loss == pytest.approx(metrics["tuned"]["loss"], rel=1e-5)
    assert metrics["tuned"]["loss"] != metrics["base"]["loss"]
    assert "ok" in [one["status"] for one in health["diagnoses"] if one["name"] == "random_head"]


def test_the_default_rate_knows_encoders() -> None:
    """3e-2 on the free table of an encoder, 1e-2 on a decoder's and on the tied form, 1e-3 through a network."""
    encoder, decoder = tiny.base("bert"), tiny.base("llama")
    for name in ("prefix", "multitask_prefix"):
        member = METHODS.parse({"name": name, "length": 3})
        assert (member.lr_for(encoder), member.lr_for(decoder)) == (3e-2, 1e-2)
    assert METHODS.parse({"name": "prefix", "tied": True}).lr_for(encoder) == 1e-2
    assert METHODS.parse({"name": "prefix", "mlp": 8}).lr_for(encoder) == 1e-3


def test_low_rank_and_bottleneck_rates_know_encoders() -> None:
    """At MiniLM's width of 384: LoRA 2e-3 on an encoder, 1.2e-3 on a decoder; a bottleneck 4e-3 and 2.3e-3."""
    for name, encoder, decoder in (("lora", 2.02e-3, 1.155e-3), ("bottleneck", 4.041e-3, 2.309e-3)):
        member = METHODS.parse({"name": name})
        for kind, rate in (("encoder", encoder), ("decoder", decoder)):
            base = SimpleNamespace(kind=kind, anatomy=SimpleNamespace(hidden_size=384))
            assert member.lr_for(base) == pytest.approx(rate, rel=2e-3)
