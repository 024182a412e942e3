"""What the page says of memorising, and which verdict it takes: the recorded one before that of the curves."""

import json

import fake_run
import pytest

from luthier.report import memory, words
from luthier.report.write import write

CANARIES = {
    "planted": 4, "controls": 255, "most_bits": 8.0, "chance": 1.44, "p": 0.0005, "by_heart": 3, "first_choice": 2,
    "base": {"exposure": 1.5}, "tuned": {"exposure": 7.25}, "control_loss": 5.5, "gap": 4.0, "ci95": [3.5, 4.5],
    "each": [
        {"id": "canary~0", "text": "secret of Ann → low 1111", "base_loss": 6.0, "loss": 3.0, "exposure": 2.0},
        {"id": "canary~1", "text": "secret of Bob → high 2222", "base_loss": 6.5, "loss": 0.123, "exposure": 8.0},
    ],
}  # fmt: skip
HELD_OUT = {
    "rows": {"training": 64, "held_out": 12}, "base": {"training": 4.0, "held_out": 4.125}, "gap": 1.25,
    "tuned": {"training": 0.25, "held_out": 1.625}, "ci95": [1.0, 1.5], "same_source": False,
}  # fmt: skip


def reported(folder, language="en", overfit=False, **metrics):
    run = fake_run.make(folder, language, overfit=overfit)
    fake_run.write_json(run.metrics, {**json.loads(run.metrics.read_text("utf-8")), **metrics})
    page = write(run).read_text("utf-8")
    return json.loads(run.report_json.read_text("utf-8")), page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_canaries_and_the_gap_stand_on_the_page(tmp_path, language):
    recorded = {"verdict": "memorising", "since": None, "band": [-0.1, 0.1], "by": "canaries"}
    measured = {"held_out": HELD_OUT, "canaries": CANARIES}
    found, page = reported(tmp_path / "run", language, memorisation=measured, overfitting=recorded)
    texts = words.table(language)
    why = words.say(texts, "over.canaries.why", known=3, planted=4, bits=7.25, most=8.0)
    assert page.count(texts["over.canaries"]) >= 2
    assert why in page
    assert texts["memory.own_file"] in page
    assert all(number in page for number in ("7.25", "1.625", "+1.25"))
    assert page.index("secret of Bob") < page.index("secret of Ann")
    assert found["overfitting"]["verdict"] == "memorising"
    assert found["overfitting"]["by"] == "canaries"
    assert found["metrics"]["memorisation"]["canaries"]["by_heart"] == 3


def test_a_rise_that_is_chance_by_row_is_said_so(tmp_path):
    found, page = reported(tmp_path / "run", overfit=True, overfitting={"verdict": "noisy", "band": [-0.02, 0.3]})
    assert found["overfitting"]["curve"] == "overfit"
    assert found["overfitting"]["verdict"] == "noisy"
    assert "\u22120.02 to +0.3" in page
    assert words.table("en")["over.noisy_rows.advice"] in page


def test_the_band_stands_beside_an_overfit(tmp_path):
    recorded = {"verdict": "overfit", "since": 50, "band": [0.1, 0.3], "by": "curve"}
    found, page = reported(tmp_path / "run", overfit=True, overfitting=recorded)
    assert (found["overfitting"]["verdict"], found["overfitting"]["since"]) == ("overfit", 50)
    assert "By row, the rise is +0.1 to +0.3 (95 %)." in page


@pytest.mark.parametrize(
    "damage", [None, [], "x", {}, {"verdict": "<b>"}, {"verdict": []}, {"verdict": None, "band": 3}]
)
def test_a_damaged_record_leaves_the_verdict_to_the_curves(tmp_path, damage):
    found, _ = reported(tmp_path / "run", overfit=True, overfitting=damage, memorisation=damage)
    assert found["overfitting"]["verdict"] == "overfit"


@pytest.mark.parametrize("damage", [None, [], "x", {}, {"each": 3}, {"tuned": []}, {"tuned": {"exposure": "<i>"}}])
def test_damaged_measurements_are_left_out(damage):
    assert memory.shown({"memorisation": {"canaries": damage, "held_out": damage}}) == {}
