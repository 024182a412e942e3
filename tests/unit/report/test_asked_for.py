"""R1, R3, R4, R8: what the founding documents ask of a report, each by its number."""

import json

import fake_run
import pytest
import yaml
from matplotlib.figure import Figure

from luthier.report import plots, words
from luthier.report.write import write

CURVES = {
    "train": [{"step": step, "loss": 3.0 - step / 50} for step in range(1, 91)],
    "validation": [{"step": step, "loss": 2.0 + abs(step - 40) / 50} for step in range(0, 91, 10)],
}
OVERFIT = {"verdict": "overfit", "since": 40}


def axes_of(curves, verdict, language="en"):
    axes = Figure().subplots()
    plots._curves(axes, curves, verdict, words.table(language))
    return axes


def test_r1_the_json_has_the_whole_recipe_and_can_be_read_again(tmp_path):
    run = fake_run.make(tmp_path / "run")
    write(run)
    found = json.loads(run.report_json.read_text("utf-8"))
    assert found["recipe"] == yaml.safe_load(run.resolved.read_text("utf-8")), "never the empty config of the traps"
    assert found["recipe"]["train"]["epochs"] == 3
    assert [point["step"] for point in found["curves"]["train"]] == list(range(1, 91))
    assert {"loss", "perplexity"} <= found["curves"]["validation"][-1].keys()
    assert len(found["samples"]) == len(fake_run.SAMPLES)
    assert found["overfitting"]["verdict"] in ("healthy", "underfit")
    assert found["cost"]["wall_seconds"] > 0
    assert found["environment"]


def test_r3_both_curves_stand_over_optimizer_steps_on_one_axis():
    axes = axes_of(CURVES, OVERFIT)
    assert len(axes.figure.axes) == 1, "no second x axis"
    assert axes.get_xlabel() == "optimizer step"
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["validation"].get_xdata()) == [point["step"] for point in CURVES["validation"]]
    assert list(lines["training (smoothed)"].get_xdata()) == [point["step"] for point in CURVES["train"]]


def test_r3_the_shaded_zone_is_from_the_best_step_to_the_last_and_only_where_it_overfits():
    (zone,) = axes_of(CURVES, OVERFIT).patches
    assert (zone.get_x(), zone.get_x() + zone.get_width()) == (40, 90)
    assert not axes_of(CURVES, {"verdict": "healthy", "since": 40}).patches


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("language", words.LANGUAGES)
def test_r3_the_picture_needs_no_display_and_has_every_glyph(language):
    if language == "zh" and plots.cjk_font() is None:
        pytest.skip("no font with Chinese glyphs is installed")
    png = plots.draw(CURVES, OVERFIT, words.table(language))  # matplotlib warns of a missing glyph
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


def test_r4_the_samples_are_a_text_file_with_every_part(tmp_path):
    run = fake_run.make(tmp_path / "run")
    write(run)
    text = run.samples_text.read_text("utf-8")
    for prompt, reference, base, tuned in fake_run.SAMPLES:
        assert all(f"  │ {part}" in text for part in (prompt, reference, base, tuned))
    assert next(line for line in text.splitlines() if line.startswith("── ")).startswith("── 1 ──")


def test_r8_the_size_of_the_adapter_is_told_and_compared_with_the_model(tmp_path):
    page = write(fake_run.make(tmp_path / "run")).read_text("utf-8")
    assert "200.0 kB, 3.81 % of a copy of the model (5.2 MB)" in page
