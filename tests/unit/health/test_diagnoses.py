"""Every diagnosis is a pure function of numbers."""

from __future__ import annotations

import json

import pytest

from luthier.health import thresholds
from luthier.health.diagnoses import DIAGNOSES
from luthier.health.facts import Facts, LayerNumbers
from luthier.health.plants.faults import PLANTS
from luthier.health.run import judge

ALL = {
    "dead_adapter",
    "wrong_targets",
    "exploding",
    "rank_collapse",
    "labels_masked",
    "never_stops",
    "collapsed_output",
    "overfit",
    "forgetting",
    "wrong_base",
    "merged_twice",
    "tokenizer_mismatch",
    "padding_variance",
    "random_head",
    "context_mismatch",
    "unhelpful_layers",
    "window_unused",
}


def layer(**numbers):
    return LayerNumbers("model.layers.0.q_proj", 0, **numbers)


def status(name, facts):
    return DIAGNOSES.get(name)(facts).status


def test_all_are_members_with_different_ranks_and_a_plant_each():
    assert set(DIAGNOSES.names()) == ALL == set(PLANTS)
    assert len({DIAGNOSES.get(name).rank for name in ALL}) == 17


def test_without_any_facts_nothing_alarms_and_everything_is_json():
    found = judge(Facts()).as_json()
    assert found["verdict"] == "ok"
    assert found["top"] is None
    assert {one["name"] for one in found["diagnoses"]} == ALL
    keys = {"name", "status", "value", "threshold", "evidence", "advice"}
    assert all(set(one) == keys for one in found["diagnoses"])
    json.dumps(found, allow_nan=False)


CASES = [
    ("dead_adapter", Facts(layers=[layer(strength_p95=0.0)], effect=1.0), "fail"),
    ("dead_adapter", Facts(layers=[layer(strength_p95=0.2)], effect=0.0), "fail"),
    ("dead_adapter", Facts(layers=[layer(strength_p95=0.2), layer(strength_p95=0.0)], effect=1.0), "ok"),
    ("dead_adapter", Facts(state_change=0.0, effect=0.0), "fail"),
    ("wrong_targets", Facts(covered_layers=0, model_layers=4), "fail"),
    ("wrong_targets", Facts(covered_layers=1, model_layers=4), "fail"),
    ("wrong_targets", Facts(covered_layers=1, model_layers=4, expected_layers=1), "ok"),
    ("wrong_targets", Facts(covered_layers=None, model_layers=4), "ok"),
    ("exploding", Facts(layers=[layer(weight_norm_ratio=1.5)]), "warn"),
    ("exploding", Facts(layers=[layer(weight_norm_ratio=5.0)]), "fail"),
    ("exploding", Facts(layers=[layer(finite=False)]), "fail"),
    ("exploding", Facts(train_curve=[(1, float("nan"))]), "fail"),
    ("exploding", Facts(layers=[layer(weight_norm_ratio=0.3)]), "ok"),
    ("exploding", Facts(virtual=True, state_change=5.0, loss_change_ci=(0.1, 0.2)), "fail"),
    ("exploding", Facts(virtual=True, state_change=5.0, loss_change_ci=(-0.2, -0.1)), "ok"),
    ("rank_collapse", Facts(layers=[layer(effective_rank=1.0, rank=8, relative_strength=0.3)]), "warn"),
    ("rank_collapse", Facts(layers=[layer(effective_rank=1.0, rank=1, relative_strength=0.3)]), "ok"),
    ("rank_collapse", Facts(layers=[layer(effective_rank=1.0, rank=8, relative_strength=0.001)]), "ok"),
    ("labels_masked", Facts(rows=10, unsupervised_rows=10), "fail"),
    ("labels_masked", Facts(rows=20, unsupervised_rows=1), "warn"),
    ("labels_masked", Facts(rows=10, fully_trained_rows=10, answers_expected=True), "fail"),
    ("labels_masked", Facts(rows=10, fully_trained_rows=10), "ok"),
    ("never_stops", Facts(answers_expected=True, stop_rate=0.0, base_stop_rate=0.9), "fail"),
    ("never_stops", Facts(answers_expected=True, stop_rate=0.0, base_stop_rate=0.0), "warn"),
    ("never_stops", Facts(answers_expected=True, stop_rate=0.0, base_stop_rate=0.04), "warn"),
    ("never_stops", Facts(answers_expected=True, stop_rate=0.0, rows=10, stop_trained_rows=0), "fail"),
    ("never_stops", Facts(answers_expected=True, stop_rate=0.9), "ok"),
    ("never_stops", Facts(stop_rate=0.0), "ok"),
    ("collapsed_output", Facts(top_class=1.0, top_true_class=0.4), "fail"),
    ("collapsed_output", Facts(top_class=1.0, top_true_class=0.99), "ok"),
    ("collapsed_output", Facts(same_answers=1.0, same_references=0.1), "fail"),
    ("collapsed_output", Facts(same_answers=1.0, same_references=0.9), "ok"),
    ("collapsed_output", Facts(same_answers=0.1, distinct2=0.05, reference_distinct2=0.9), "fail"),
    ("forgetting", Facts(general_base=2.0, general_tuned=2.2, general_ci=(0.1, 0.3)), "warn"),
    ("forgetting", Facts(general_base=2.0, general_tuned=3.0, general_ci=(0.8, 1.2)), "fail"),
    ("forgetting", Facts(general_base=2.0, general_tuned=3.0, general_ci=(-0.1, 2.0)), "ok"),
    ("wrong_base", Facts(expected={"fingerprint": {"weights": "a"}}, found={"fingerprint": {"weights": "b"}}), "fail"),
    ("wrong_base", Facts(expected={"fingerprint": {"weights": "a"}}, found={"fingerprint": {"weights": "a"}}), "ok"),
    ("wrong_base", Facts(base_loss=1.0, tuned_loss=2.0, loss_change_ci=(0.5, 1.5)), "warn"),
    ("merged_twice", Facts(layers=[layer(projection=1.0, projection_error=0.02)]), "fail"),
    ("merged_twice", Facts(layers=[layer(projection=1.0, projection_error=1.0)]), "ok"),
    ("merged_twice", Facts(layers=[layer(projection=0.01, projection_error=0.02)]), "ok"),
    ("tokenizer_mismatch", Facts(expected={"template": {"name": "a"}}, found={"template": {"name": "b"}}), "fail"),
    ("tokenizer_mismatch", Facts(expected={"stop_ids": [2]}, found={"stop_ids": [3]}), "fail"),
    ("padding_variance", Facts(padding_difference=0.9), "fail"),
    ("padding_variance", Facts(padding_difference=1e-6), "ok"),
    ("random_head", Facts(has_head=True, head_change=0.0), "fail"),
    ("random_head", Facts(has_head=True, head_change=0.1), "ok"),
    ("context_mismatch", Facts(expected={"context": {"method": "yarn"}}, found={"context": {}}), "fail"),
    ("context_mismatch", Facts(expected={"context": {}}, found={"context": {}}), "ok"),
    ("window_unused", Facts(far_mass=0.004, even_mass=0.3), "warn"),
    ("window_unused", Facts(far_mass=0.12, even_mass=0.3), "ok"),
    ("window_unused", Facts(), "ok"),
    ("unhelpful_layers", Facts(tuned_loss=0.1, ablation=[(0, -0.5, -0.6, -0.4), (1, 0.1, 0.0, 0.2)]), "warn"),
    ("unhelpful_layers", Facts(tuned_loss=0.1, ablation=[(0, 0.0, -0.1, 0.1), (1, 0.1, 0.0, 0.2)]), "ok"),
]


@pytest.mark.parametrize(("name", "facts", "wanted"), CASES)
def test_status(name, facts, wanted):
    found = DIAGNOSES.get(name)(facts)
    assert found.status == wanted
    assert found.evidence
    assert bool(found.advice) == (wanted != "ok")


def test_r2_falling_losses_never_fire_and_rising_ones_do():
    train = [(step, 3.0 / step) for step in range(1, 9)]
    falling = Facts(train_curve=train, validation_curve=[(1, 3.0), (2, 2.0), (3, 1.0)])
    rising = Facts(train_curve=train, validation_curve=[(1, 1.0), (2, 2.0), (3, 3.0)])
    assert status("overfit", falling) == "ok"
    assert status("overfit", rising) == "fail"


def test_what_the_evaluation_recorded_of_overfitting_counts():
    train = [(step, 3.0 / step) for step in range(1, 9)]
    falling = [(1, 3.0), (2, 2.0), (3, 1.0)]
    by_heart = {"verdict": "memorising", "by": "canaries", "reason": "4 of 4 canaries", "advice": "fewer epochs"}
    known = DIAGNOSES.get("overfit")(Facts(train_curve=train, validation_curve=falling, overfitting=by_heart))
    assert (known.status, known.evidence, known.advice) == ("warn", "4 of 4 canaries", "fewer epochs")
    rising = {"train_curve": train, "validation_curve": [(1, 1.0), (2, 2.0), (3, 3.0)]}
    assert status("overfit", Facts(**rising, overfitting=by_heart)) == "fail"
    assert status("overfit", Facts(**rising, overfitting={"verdict": "noisy", "by": "curve"})) == "ok"


def test_e6_nothing_measured_says_so_and_is_not_called_healthy():
    found = DIAGNOSES.get("dead_adapter")(Facts())
    assert found.value is None
    assert "not measured" in found.evidence


def test_a_cause_stands_before_its_consequences():
    facts = Facts(
        answers_expected=True, stop_rate=0.0, base_stop_rate=1.0, same_answers=1.0, same_references=0.0,
        layers=[layer(weight_norm_ratio=9.0)],
        expected={"fingerprint": {"weights": "a"}}, found={"fingerprint": {"weights": "b"}},
    )  # fmt: skip
    found = judge(facts)
    assert found.top == "wrong_base"
    assert [one.name for one in found.findings[:3]] == ["wrong_base", "exploding", "collapsed_output"]


def test_thresholds_are_plain_numbers():
    assert all(isinstance(getattr(thresholds, name), float | int) for name in dir(thresholds) if name.isupper())
