"""Likeness of hidden states to the base, and the drift of prompts from words."""

from __future__ import annotations

import pytest
import torch

from luthier.health.probes import prompts
from luthier.health.probes.similarity import Likeness, linear_cka
from luthier.health.run import diagnose


def test_cka_is_one_up_to_rotation_and_scale_and_zero_for_the_unrelated():
    source = torch.Generator().manual_seed(0)
    first = torch.randn(100, 60, generator=source, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(60, 60, generator=source, dtype=torch.float64))[0]
    assert linear_cka(first, first) == pytest.approx(1.0)
    assert linear_cka(first, 3.0 * first @ turn + 5.0) == pytest.approx(1.0)
    others = [linear_cka(first, torch.randn(100, 60, generator=source, dtype=torch.float64)) for _ in range(20)]
    assert abs(sum(others) / 20) < 0.02  # the biased estimate would give 0.38 here
    assert 0.2 < linear_cka(first, first + torch.randn(100, 60, generator=source, dtype=torch.float64)) < 0.8
    assert linear_cka(first, torch.ones(100, 3)) is None


def test_likeness_keeps_a_few_tokens_of_every_row():
    states, found = torch.randn(50, 8), Likeness()
    for _ in range(10):
        found.add(states, states, 20)
    assert found.kept == 128
    assert found.cosine == pytest.approx(1.0)
    assert found.cka == pytest.approx(1.0)
    few = Likeness()
    few.add(states[:3], -states[:3], 20)
    assert (few.cosine, few.cka) == (pytest.approx(-1.0), None)


def test_an_idle_adapter_leaves_states_as_they_are_and_a_strong_one_does_not(world, shaken):
    lora = {"name": "lora", "r": 4}
    idle = diagnose(world.fresh(lora, 1).eval(), world.rows(8)).as_json()["layers"]
    assert [layer["state_cosine"] for layer in idle] == pytest.approx([1.0] * len(idle))
    assert [layer["state_cka"] for layer in idle] == pytest.approx([1.0] * len(idle))
    strong = diagnose(shaken(lora, 0.5), world.rows(8)).as_json()["layers"]
    last = max(layer["layer"] for layer in strong)
    assert all(layer["state_cosine"] < 0.9 for layer in strong if layer["layer"] == last)
    assert all(layer["state_cka"] < 0.99 for layer in strong if layer["layer"] == last)


def test_a_prompt_that_begins_as_words_has_no_drift_until_it_is_moved(world, shaken):
    rows = world.rows(4)
    start = prompts.drift(world.fresh({"name": "prompt", "length": 3}, 1), rows)
    assert start["drift"] == pytest.approx(0.0, abs=1e-6)
    assert [one["cosine"] for one in start["nearest"]] == pytest.approx([1.0] * 3)
    moved = diagnose(shaken({"name": "prompt", "length": 3}, 0.05), rows).as_json()["prompt"]
    assert moved["drift"] > 0.2
    assert moved["norm_ratio"] > 1.2
    assert prompts.drift(world.fresh({"name": "prefix", "length": 3}, 1), rows) is None
    assert prompts.drift(world.fresh({"name": "lora"}, 1), rows) is None
