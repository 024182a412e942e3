"""Planted faults are found; the whole self-test is slow, a few plants run always."""

from __future__ import annotations

import json

import pytest

from luthier.core.types import Row
from luthier.health.plants.faults import PLANTS
from luthier.health.run import diagnose
from luthier.health.selftest import passed, selftest


@pytest.mark.parametrize("name", ["dead_adapter", "labels_masked", "random_head", "tokenizer_mismatch"])
def test_faults_that_need_no_trained_base_are_the_top_finding(world, monkeypatch, name):
    from luthier.health.plants import healthy

    whole = healthy.run
    monkeypatch.setattr(healthy, "run", lambda w, m, seed, steps=8: whole(w, m, seed, 8))
    case = PLANTS[name](world, 0)
    found = diagnose(case.adapted, case.rows, run=case.run)
    assert found.top == name


def test_a_trained_prompt_is_found(world):
    rows = [Row(row.id, row.input_ids, row.input_ids.copy()) for row in world.rows(12)]
    assert diagnose(world.fresh({"name": "lora", "r": 2}, 0), rows).top == "labels_masked"


def test_rows_without_any_are_no_crash(world):
    found = diagnose(world.fresh({"name": "lora", "r": 2}, 0), [])
    assert found.as_json()["rows"] == 0


def check(seeds):
    found = selftest(seeds=seeds)
    json.dumps(found, allow_nan=False)
    assert found["missed"] == []
    assert found["alarms"] == []
    assert found["healthy_runs"] == 4 * seeds
    assert passed(found)


@pytest.mark.slow
def test_every_planted_fault_is_the_top_diagnosis_and_a_healthy_run_of_each_method_is_silent():
    check(1)


@pytest.mark.soak
def test_every_planted_fault_is_the_top_diagnosis_and_no_healthy_run_alarms():
    check(5)
