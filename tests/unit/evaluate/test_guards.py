"""Guards: general text before and after."""

from __future__ import annotations

import pytest

from luthier.core.errors import LuthierError
from luthier.evaluate import guards


def test_e8_a_probe_set_of_another_task_is_measured_before_and_after(questions, tmp_path):
    file = tmp_path / "general.txt"
    file.write_text("\n\n".join(f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(10)))
    found = guards.measure(questions.adapted, [str(file)], batch_tokens=512, resamples=100, seed=0)["general.txt"]
    assert found["value"] == pytest.approx(found["tuned"] - found["base"])
    assert found["base"] > 0
    assert len(found["ci95"]) == 2


def test_an_adapter_that_is_off_changes_no_guard(world, tmp_path):
    file = tmp_path / "general.txt"
    file.write_text("w1 w2 w3 w4 w5\n\nw6 w7 w8 w9")
    adapted = world.fresh({"name": "lora", "r": 2}, 0)
    found = guards.measure(adapted, [str(file)], batch_tokens=512, resamples=100, seed=0)["general.txt"]
    assert found["value"] == 0.0


def test_an_empty_guard_file_is_refused(questions, tmp_path):
    file = tmp_path / "empty.txt"
    file.write_text("")
    with pytest.raises(LuthierError):
        guards.rows_of(file, questions.adapted)
