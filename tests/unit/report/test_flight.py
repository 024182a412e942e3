"""The training rows over time and the rows behind spikes, on the page."""

import json

import fake_run
import pytest

from luthier.report import words
from luthier.report.write import write

ROWS = {
    "counts": {"learned": 90, "never_learned": 2, "forgotten": 1},
    "never_learned": [
        {"id": "people:7", "source": "in/people.json:7", "text": "Who? → Nobody.", "first": 4.5, "lowest": 4.25,
         "last": 4.375}
    ],
    "forgotten": [{"id": "people:9", "first": 3.0, "lowest": 0.5, "last": 2.75}],
    "memorised": [],
    "spikes": [{"step": 41, "loss": 9.5, "rows": [{"id": "people:8", "source": "in/people.json:8"}, {"id": "x:1"}]}],
}  # fmt: skip


def page_of(folder, training_rows, language="en"):
    run = fake_run.make(folder, language)
    metrics = {**json.loads(run.metrics.read_text("utf-8")), "training_rows": training_rows}
    fake_run.write_json(run.metrics, metrics)
    return write(run).read_text("utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rows_stand_with_file_line_and_losses(tmp_path, language):
    page, texts = page_of(tmp_path / "run", ROWS, language), words.table(language)
    assert f"{texts['flight.never_learned']}: 2" in page
    assert "in/people.json:7" in page
    assert "Who? → Nobody." in page
    assert page.index("4.375") < page.index("people:9")
    assert words.say(texts, "spikes.text", step=41, loss=9.5, rows="in/people.json:8, x:1") in page
    assert f"<h3>{texts['flight.memorised']}</h3>" not in page


@pytest.mark.parametrize("damage", [None, [], "x", {"counts": [], "forgotten": {}, "spikes": [3, {"rows": "x"}]}])
def test_damaged_records_are_left_out(tmp_path, damage):
    assert words.table("en")["flight.title"] not in page_of(tmp_path / "run", damage)
