"""The family, and the sums behind token-weighted numbers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from luthier.metrics import METRICS
from luthier.metrics.resample import group_indices, paired
from luthier.metrics.scored import mean

CONTRACT = {
    "loss",
    "perplexity",
    "token_accuracy",
    "accuracy",
    "precision_macro",
    "precision_weighted",
    "recall_macro",
    "recall_weighted",
    "f1_macro",
    "f1_weighted",
    "mcc",
    "exact_match",
    "rouge1",
    "rouge2",
    "rougeL",
    "bleu",
    "chrf",
    "stop_rate",
}


def test_every_metric_of_the_contract_is_a_member_with_traits():
    assert set(METRICS.names()) >= CONTRACT
    for name in METRICS.names():
        member = METRICS.get(name)
        assert member.kind in ("tokens", "text", "endings", "labels", "values")
        assert member.higher_is_better in (True, False, None)
        assert METRICS.summaries()[name]


def test_the_family_imports_without_torch():
    code = (
        "import sys; from luthier.metrics import METRICS; [METRICS.get(n) for n in METRICS.names()]; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_e1_loss_is_weighted_by_tokens_and_not_a_mean_of_means():
    sums, counts = np.array([[10.0, 0], [1.0, 0]]), np.array([10, 2])
    assert METRICS.get("loss")(sums, counts).value == pytest.approx(11 / 12)
    assert METRICS.get("loss")(sums, counts).each.tolist() == [1.0, 0.5]


def test_e1_perplexity_does_not_overflow():
    found = METRICS.get("perplexity")(np.array([[1e9, 0.0]]), np.array([1]))
    assert np.isfinite(found.value)
    assert METRICS.get("perplexity")(np.array([[2.0, 0.0]]), np.array([2])).value == pytest.approx(np.e)


def test_no_rows_give_zero_and_no_warning():
    assert METRICS.get("loss")(np.zeros((0, 2)), np.zeros(0)).value == 0.0
    assert METRICS.get("rouge1")([], []).value == 0.0
    assert METRICS.get("chrf")([], []).value == 0.0


def test_bootstrap_of_equal_models_is_zero_with_p_one():
    scores = mean(np.arange(20.0))
    found = paired(scores, scores)
    assert found["value"] == 0.0
    assert found["ci95"] == [0.0, 0.0]
    assert found["p"] == 1.0


def test_bootstrap_interval_covers_the_true_difference_about_95_times_in_100():
    hits = 0
    for trial in range(60):
        source = np.random.default_rng(trial)
        base = source.normal(0, 1, 80)
        tuned = base + source.normal(0.3, 1, 80)
        low, high = paired(mean(base), mean(tuned), 400, trial)["ci95"]
        hits += low <= 0.3 <= high
    assert hits >= 51


def test_permutation_p_is_uniform_without_an_effect():
    values = []
    for trial in range(60):
        source = np.random.default_rng(1000 + trial)
        base, tuned = source.normal(size=40), source.normal(size=40)
        values.append(paired(mean(base), mean(tuned), 200, trial)["p"])
    assert 0 <= sum(value < 0.05 for value in values) <= 9
    assert 0.35 < np.mean(values) < 0.65


def test_ratios_of_sums_are_resampled_not_means_of_ratios():
    counts = np.array([1, 1000] * 20)
    base = np.stack([counts * 1.0, counts * 0], axis=1)
    tuned = np.stack([np.where(counts == 1, 5.0, 1000.0), counts * 0], axis=1)
    found = paired(METRICS.get("loss")(base, counts), METRICS.get("loss")(tuned, counts))
    assert found["value"] == pytest.approx(20 * 4 / (20 * 1001))
    assert found["ci95"][1] < 0.02


def test_windows_of_one_document_are_drawn_together():
    source = np.random.default_rng(0)
    effect = np.repeat(source.normal(size=10), 30)
    base, tuned = mean(np.zeros(300)), mean(effect)
    groups = group_indices([f"d{i // 30}" for i in range(300)])
    alone, together = paired(base, tuned), paired(base, tuned, groups=groups)
    width = [found["ci95"][1] - found["ci95"][0] for found in (alone, together)]
    assert width[1] > 3 * width[0]
    assert together["rows"] == 10


def test_group_indices_of_different_names_are_none():
    assert group_indices(["a", "b"]) is None
    assert group_indices(["a", "a"]) is None
    assert group_indices(["a", "b", "a"]).tolist() == [0, 1, 0]


def test_the_smallest_detectable_effect_is_seen_four_times_in_five():
    seen = 0
    for trial in range(60):
        source = np.random.default_rng(trial)
        base = source.normal(size=60)
        noise = source.normal(size=60)
        size = paired(mean(base), mean(base + noise), 300, trial)["detectable"]
        found = paired(mean(base), mean(base + noise + size), 300, trial)
        seen += found["ci95"][0] > 0
    assert 38 <= seen <= 58


def test_one_row_has_no_interval():
    assert paired(mean([1.0]), mean([2.0]))["ci95"] == [1.0, 1.0]
