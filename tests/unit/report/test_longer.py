"""The section of a longer window: tables and picture from window.json, whatever stands in it."""

import json

import fake_run
import pytest

from luthier.report import longer, words
from luthier.report.write import write

EDGES = ("0-32", "32-64", "64-128")


def grid(share, loss):
    return {"lengths": [64, 128], "depths": [0.1, 0.9], "shares": [[share] * 2] * 2, "losses": [[loss] * 2] * 2,
            "mean": share, "loss": loss, "floor": 2e-5}  # fmt: skip


def shape(far):
    layer = {"layer": 0, "far": [far, far + 0.2], "distance": [3.0, 5.0], "entropy": [0.5, 0.7], "sink": [0.1, 0.3]}
    return {"far": 64, "rows": 2, "layers": [layer], "mean": {"far": far + 0.1, "distance": 4.0}}


WINDOW = {
    "plan": "yarn 64 → 128", "window": 64, "target": 128, "documents": 3,
    **{arm: dict(zip(EDGES, values, strict=True)) for arm, values in
       {"base": (3.1, 3.0, 7.5), "untuned": (3.4, 3.3, 4.5), "tuned": (2.9, 2.8, 2.7),
        "own_window_only": (3.1, 3.0, 3.05)}.items()},
    "passkey": {"base": grid(0.0, 7.0), "tuned": grid(1.0, 0.25)},
    "tasks": {"base": {"needle": {"solved": 0.0, "loss": 6.5, "floor": 0.2}},
              "tuned": {"needle": {"solved": 0.5, "loss": 1.5, "floor": 0.2}}},
    "attention": {"base": shape(0.1), "tuned": shape(0.3)},
}  # fmt: skip


def page_of(folder, window, language="en"):
    run = fake_run.make(folder / "run", language)
    run.window.write_text(json.dumps(window))
    return run, write(run).read_text("utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_before_and_after_stand_in_the_page(tmp_path, language):
    run, page = page_of(tmp_path, WINDOW, language)
    texts = words.table(language)
    for key in ("longer.title", "longer.losses", "longer.own_window_only", "longer.needle", "longer.attention"):
        assert texts[key] in page
    assert "yarn 64 → 128" in page
    assert page.count("data:image/png") == 2
    assert run.window_png.read_bytes().startswith(b"\x89PNG")
    assert json.loads(run.report_json.read_text())["window"]["tuned"]["64-128"] == 2.7


def test_the_tables_hold_the_numbers():
    assert longer.losses(WINDOW)["rows"][2] == ("tuned", [2.9, 2.8, 2.7])
    found = longer.tasks(WINDOW)
    assert found["arms"] == ["base", "tuned"]
    assert found["rows"][0] == ("passkey_grid", 2e-5, [(0.0, 7.0), (1.0, 0.25)])
    assert found["rows"][1] == ("needle", 0.2, [(0.0, 6.5), (0.5, 1.5)])
    looked = longer.attention(WINDOW)
    assert looked["names"] == ["far", "distance", "entropy", "sink"]
    layer, values = looked["rows"][0]
    assert layer == 0
    assert values == pytest.approx([0.2, 0.4, 4.0, 4.0, 0.6, 0.6, 0.2, 0.2])


@pytest.mark.parametrize(
    "window",
    [{}, {"base": 3}, {"tuned": {"0-32": "x"}}, {**WINDOW, "passkey": [1]}, {**WINDOW, "attention": {"base": 1}},
     {**WINDOW, "passkey": {"base": {"lengths": 3}, "tuned": {"lengths": [1], "depths": [1], "shares": [[None]]}}},
     {**WINDOW, "tasks": {"base": 0, "tuned": {"needle": 3}}}, {**WINDOW, "plan": "<script>alert(1)</script>"}],
)  # fmt: skip
def test_a_strange_file_breaks_nothing(tmp_path, window):
    _, page = page_of(tmp_path, window)
    assert "<script" not in page


def test_without_a_longer_window_there_is_no_section(tmp_path):
    page = write(fake_run.make(tmp_path / "run")).read_text("utf-8")
    assert words.table("en")["longer.title"] not in page
    assert page.count("data:image/png") == 1
