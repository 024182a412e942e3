"""Verdict, overfitting, trajectories, comparison: pure functions and files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.core.rundir import RunDir
from luthier.evaluate import overfitting, trajectories
from luthier.evaluate.compare import checkpoints, compare
from luthier.evaluate.verdict import verdict

GOOD = {
    "primary": "loss", "difference": {"loss": {"ci95": [-0.3, -0.1]}}, "noise_floor": {"loss": 1e-6},
    "directions": {"loss": False},
}  # fmt: skip
HEALTHY = {"verdict": "ok", "diagnoses": []}


def test_ships_when_the_interval_lies_above_zero():
    assert verdict(GOOD, HEALTHY)["ship"]


@pytest.mark.parametrize(
    ("metrics", "health", "more", "said"),
    [
        ({**GOOD, "difference": {"loss": {"ci95": [-0.3, 0.1]}}}, HEALTHY, {}, "above zero"),
        ({**GOOD, "noise_floor": {"loss": 0.2}}, HEALTHY, {}, "noise floor"),
        ({**GOOD, "difference": {}}, HEALTHY, {}, "no paired interval"),
        (GOOD, {"verdict": "fail", "diagnoses": [{"name": "exploding", "status": "fail"}]}, {}, "exploding"),
        (GOOD, {}, {}, "health"),
        (GOOD, HEALTHY, {"guards": {"wiki": {"base": 2.0, "ci95": [0.0, 0.4]}}}, "guard wiki"),
        (GOOD, HEALTHY, {"recorded": {"data": "a"}, "now": {"data": "b"}}, "stale"),
        (GOOD, HEALTHY, {"recorded": {}, "now": {"adapter": "b"}}, "stale"),
    ],
)
def test_does_not_ship_and_says_why(metrics, health, more, said):
    found = verdict(metrics, health, **more)
    assert not found["ship"]
    assert any(said in reason for reason in found["reasons"])


def test_a_guard_within_its_margin_ships():
    assert verdict(GOOD, HEALTHY, {"wiki": {"base": 2.0, "ci95": [-0.1, 0.05]}})["ship"]


STEPS = [10, 20, 30, 40, 50, 60]
FALLING = list(zip(STEPS, [3.0, 2.0, 1.5, 1.2, 1.0, 0.9], strict=True))


def curve(*losses):
    return list(zip(STEPS, losses, strict=False))


def test_r2_planted_overfitting_is_found_with_its_step():
    found = overfitting.diagnose(FALLING, curve(2.0, 1.5, 1.4, 1.6, 1.9, 2.3))
    assert found.verdict in ("overfit", "memorising")
    assert found.since == 30
    assert "step 30" in found.advice


def test_r2_the_documents_test_is_inverted_3_2_1_is_healthy_and_1_2_3_is_not():
    assert overfitting.diagnose(FALLING, curve(3.0, 2.0, 1.0)).verdict in ("healthy", "underfit")
    assert overfitting.diagnose(FALLING, curve(1.0, 2.0, 3.0)).verdict in ("overfit", "memorising")


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=30), st.lists(st.floats(0.01, 10), min_size=3, max_size=30))
def test_r2_a_falling_validation_loss_is_never_overfitting(train, validation):
    falling = sorted(validation, reverse=True)
    found = overfitting.diagnose(list(enumerate(train)), list(enumerate(falling)))
    assert found.verdict not in ("overfit", "memorising", "diverging")


def test_r2_underfitting_and_noise_have_their_own_verdicts():
    assert overfitting.diagnose(FALLING, curve(5.0, 4.0, 3.2, 2.5, 1.9, 1.4)).verdict == "underfit"
    wobble = curve(1.0, 1.6, 0.99, 1.5, 1.01, 1.55)
    assert overfitting.diagnose(FALLING, wobble).verdict in ("noisy", "healthy")


def test_r2_a_rise_within_the_rows_own_noise_is_noise():
    source = np.random.default_rng(0)
    counts = np.ones(6)
    rows = [(step, 2 + source.normal(0, 0.4, 6), counts) for step in STEPS]
    lucky = min(rows, key=lambda item: item[1].sum())[0]
    band = overfitting.rise(rows)
    assert lucky != STEPS[-1]
    assert band[0] < 0 < band[1]
    risen = [(10, 2.0), (20, 1.5), (30, 1.0), (40, 1.3), (50, 1.4), (60, 1.5)]
    assert overfitting.diagnose(FALLING, risen).verdict == "overfit"
    assert overfitting.diagnose(FALLING, risen, rows).verdict == "noisy"


def test_r2_a_best_step_that_was_picked_by_luck_has_no_rise():
    """Curves without any trend, whose lowest point lies below the last one all the same."""
    source = np.random.default_rng(1)
    sure = 0
    for seed in range(60):
        rows = [(step, 2 + source.normal(0, 0.5, 24), np.ones(24)) for step in range(12)]
        sure += overfitting.rise(rows, seed, 200)[0] > 0
    assert sure <= 4
    true = [(step, 2 + 0.1 * abs(step - 4) + source.normal(0, 0.2, 24), np.ones(24)) for step in range(12)]
    assert overfitting.rise(true)[0] > 0.3


def test_memorisation_is_a_gap_that_the_base_has_not():
    source = np.random.default_rng(0)
    easy, hard = source.normal(2, 0.3, 40), source.normal(4, 0.3, 50)
    found = overfitting.memorisation((easy, easy * 0.02), (hard, hard - 0.2))
    assert found["gap"] == pytest.approx(0.98 * easy.mean() - 0.2)
    assert found["ci95"][0] < found["gap"] < found["ci95"][1]
    assert found["memorised"]
    assert found["rows"] == {"training": 40, "held_out": 50}
    same = overfitting.memorisation((easy, easy - 1.9), (hard, hard - 1.9))
    assert same["gap"] == pytest.approx(0)
    assert not same["memorised"]  # rows that were easier before the training are not known by heart
    some = overfitting.memorisation((easy, easy - 1.0), (hard, hard - 0.5))
    assert some["ci95"][0] > 0
    assert not some["memorised"]  # every training leaves a gap
    little = overfitting.memorisation((easy, easy * 0 + 0.001), (easy, easy * 0 + 0.05))
    assert not little["memorised"]  # both know it


def test_exposure_in_bits():
    controls = [float(i) for i in range(255)]
    assert overfitting.exposure(-1.0, controls) == 8.0
    assert overfitting.exposure(1e3, controls) == 0.0
    assert overfitting.exposure(6.5, controls) == 5.0  # rank 8 of 256
    mean = np.mean([overfitting.exposure(i - 0.5, controls) for i in range(256)])
    assert mean == pytest.approx(overfitting.CHANCE, abs=0.03)


def test_exposures_of_canaries_that_were_trained_and_of_some_that_were_not():
    source = np.random.default_rng(1)
    before, controls = source.normal(5, 0.5, 8), source.normal(5, 0.5, 255)
    known = overfitting.exposures((before, before * 0.05), (controls, controls - 0.1))
    assert known["tuned"]["exposure"] == known["most_bits"] == 8.0
    assert known["by_heart"] == 8
    assert known["p"] == 1 / 2001
    assert known["gap"] == pytest.approx(0.95 * before.mean() - 0.1)
    untrained = [
        overfitting.exposures((part, part - 0.1), (controls, controls - 0.1), seed)
        for seed, part in enumerate(source.normal(5, 0.5, (40, 8)))
    ]
    assert np.mean([one["tuned"]["exposure"] for one in untrained]) == pytest.approx(overfitting.CHANCE, abs=0.25)
    assert sum(one["p"] < 0.05 for one in untrained) <= 5  # a p value: 2 of 40 are expected
    assert not any(one["memorised"] for one in untrained)


def test_canaries_known_by_heart_are_memorising_and_a_gap_only_where_the_loss_does_not_fall():
    canaries = overfitting.exposures((np.full(4, 5.0), np.full(4, 0.1)), (np.full(9, 5.0), np.full(9, 4.5)))
    found = overfitting.diagnose(FALLING, FALLING, memory={"canaries": canaries})
    assert (found.verdict, found.by, found.since) == ("memorising", "canaries", None)
    assert "4 of 4 canaries" in found.reason
    gap = overfitting.memorisation((np.full(9, 5.0), np.full(9, 0.1)), (np.full(9, 5.0), np.full(9, 4.5)))
    assert gap["memorised"]
    assert overfitting.diagnose(FALLING, FALLING, memory={"held_out": gap}).verdict in ("healthy", "underfit")
    flat = curve(2.0, 1.5, 1.4, 1.4, 1.4, 1.41)
    assert overfitting.diagnose(FALLING, flat).verdict == "healthy"
    found = overfitting.diagnose(FALLING, flat, memory={"held_out": gap})
    assert (found.verdict, found.by) == ("memorising", "held_out")


def test_histories_take_each_step_once():
    lines = [{"step": 2, "loss": [1.0, 2.0], "units": [1, 1]}, {"step": 1, "loss": [3.0, 2.0], "units": [1, 1]}]
    found = overfitting.histories([*lines, {"step": 2, "loss": [5.0, 5.0], "units": [1, 1]}])
    assert [(step, loss.tolist()) for step, loss, _ in found] == [(1, [3.0, 2.0]), (2, [5.0, 5.0])]
    assert overfitting.histories([*lines, {"step": 3, "loss": [1.0], "units": [1]}]) == []


def test_e11_checkpoints_7_and_21_converged_or_overfit():
    flat = [(step, 1.0) for step in (7, 14, 21)]
    assert overfitting.between(flat, 7, 21)["verdict"] == "converged"
    assert overfitting.between([(7, 1.0), (14, 0.8), (21, 0.7)], 7, 21)["verdict"] == "improving"
    found = overfitting.between([(7, 1.0), (14, 0.7), (21, 0.9)], 7, 21)
    assert found["verdict"] == "overfit"
    assert found["best"] == 14
    assert overfitting.between(flat, 7, 22)["verdict"] == "unknown"


def record(step, rows, losses):
    return {"step": step, "epoch": 0, "rows": rows, "loss": losses, "tokens": [4] * len(rows)}


def test_trajectories_of_rows():
    kinds = {
        "good": [3.0, 1.0, 0.8], "hard": [3.0, 2.9, 2.8], "lost": [3.0, 0.8, 2.9], "heart": [3.0, 0.4, 0.01],
    }  # fmt: skip
    names = list(kinds)
    records = [record(step, names, [kinds[name][step] for name in names]) for step in range(3)]
    found = trajectories.trajectories([*records, records[-1], record(3, ["once"], [1.0])])
    assert {name: one.kind for name, one in found.items()} == {
        "good": "learned", "hard": "never_learned", "lost": "forgotten", "heart": "memorised", "once": "seen_once",
    }  # fmt: skip
    assert len(found["good"].losses) == 3
    assert trajectories.counts(found)["learned"] == 1


def test_the_row_behind_a_spike_is_named_with_file_and_line():
    records = [record(step, ["a", "b"], [1.0 + 0.01 * (step % 3), 1.0]) for step in range(20)]
    records[15] = record(15, ["a", "poison"], [1.0, 30.0])
    (spike,) = trajectories.spikes(records, {"poison": "data.json:7"})
    assert spike["step"] == 15
    assert spike["rows"][0] == {"id": "poison", "loss": 30.0, "share": pytest.approx(30 / 31), "source": "data.json:7"}


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=20))
def test_a_row_that_only_falls_is_never_forgotten(losses):
    assert trajectories.classify(sorted(losses, reverse=True), 1.0) != "forgotten"


def write_run(folder, rate, losses):
    run = RunDir(folder)
    run.predictions.parent.mkdir(parents=True)
    run.resolved.write_text(f"train: {{lr: {rate}}}\ntask: instruct\n")
    run.status.write_text(json.dumps({"state": "finished", "step": 3}))
    events = [{"kind": "train", "step": i, "loss": 3.0 - i, "tokens": 10, "seconds": 0.5} for i in range(3)]
    events += [{"kind": "validate", "step": i, "loss": 2.0 - 0.1 * i} for i in range(3)]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    run.metrics.write_text(json.dumps({"rows": 30, "primary": "loss", "tuned": {"loss": float(np.mean(losses))}}))
    run.health.write_text(json.dumps({"verdict": "ok", "top": None}))
    records = [{"id": f"r{i}", "tokens": 4, "tuned_loss": loss} for i, loss in enumerate(losses)]
    run.predictions.write_text("".join(json.dumps(item) + "\n" for item in records))
    return run


def test_compare_reads_files_only(tmp_path):
    source = np.random.default_rng(0)
    losses = source.random(30)
    runs = [write_run(tmp_path / "a", 1e-3, losses), write_run(tmp_path / "b", 2e-3, losses - 0.2)]
    found = compare(runs)
    assert found["recipe"] == {"train.lr": [0.001, 0.002]}
    assert found["paired"][0]["metrics"]["loss"]["value"] == pytest.approx(-0.2)
    assert found["paired"][0]["metrics"]["loss"]["p"] < 0.01
    assert found["runs"][0]["cost"]["tokens"] == 30
    assert found["runs"][0]["validation"] == [[0, 2.0], [1, 1.9], [2, 1.8]]
    json.dumps(found)


def test_compare_needs_two_runs(tmp_path):
    with pytest.raises(DataError):
        compare([RunDir(tmp_path)])


def test_e11_checkpoints_of_one_run_side_by_side(tmp_path):
    run = write_run(tmp_path / "a", 1e-3, np.ones(3))
    (run.path / "checkpoints" / "step-000002").mkdir(parents=True)
    found = checkpoints(run, [0, 2])
    assert [(row["step"], row["validation"], row["kept"]) for row in found["checkpoints"]] == [
        (0, 2.0, False), (2, 1.8, True),
    ]  # fmt: skip
    assert found["between"]["verdict"] == "improving"
    with pytest.raises(DataError, match="step 7"):
        checkpoints(run, [0, 7])


def test_row_ids_lead_back_to_file_and_line():
    manifest = {"sources": [{"path": "in/people.json.gz"}, {"path": "a/x.csv"}, {"path": "b/x.csv"}]}
    found = trajectories.places(["people:17", "people:18#2", "x:3", "odd"], manifest)
    assert found == {"people:17": "in/people.json.gz:17", "people:18#2": "in/people.json.gz:18"}


def test_the_summary_of_the_flight_recorder():
    names = {"good": [3.0, 1.0, 0.8], "hard": [3.0, 2.9, 2.8], "worse": [3.0, 2.9, 2.95], "heart": [3.0, 0.4, 0.01]}
    records = [record(step, list(names), [names[name][step] for name in names]) for step in range(3)]
    found = trajectories.summary(records, [{"step": 2, "loss": 9.0, "rows": ["hard"]}], most=1)
    assert found["counts"] == {"learned": 1, "never_learned": 2, "memorised": 1}
    assert [row["id"] for row in found["never_learned"]] == ["worse"]
    assert [row["id"] for row in found["memorised"]] == ["heart"]
    assert found["forgotten"] == []
    assert found["spikes"] == [{"step": 2, "loss": 9.0, "rows": ["hard"]}]
