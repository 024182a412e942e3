"""The bench: the same work in every arm, honest ratios, arms that exist."""

import json
import sys

import numpy as np
import pytest

from luthier.bench import control, work
from luthier.core.errors import RecipeError


def test_rows_have_the_documented_lengths():
    lengths = np.array([len(row["input_ids"]) for row in work.make_rows(2000, 1000)])
    assert 74 <= np.median(lengths) <= 88
    assert 280 <= np.percentile(lengths, 90) <= 370
    assert lengths.max() == 512
    row = work.make_rows(3, 1000)[0]
    trained = sum(label != -100 for label in row["labels"])
    assert trained == len(row["labels"]) - int(len(row["labels"]) * 0.22)


def test_flops_of_a_known_shape(tmp_path):
    made = work.prepare(tmp_path, "tiny", 4)
    lengths = [len(row["input_ids"]) for row in json.loads((tmp_path / "rows.json").read_text())]
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    linear = 2 * layer + 32 * 256
    adapters = 2 * (8 * (32 + 32) + 8 * (32 + 16))
    attention = sum(6 * 2 * 32 * n * n / 2 * 2 for n in lengths)
    assert made["flops"] == pytest.approx((4 * linear + 6 * adapters) * sum(lengths) + attention)
    assert made["tokens"] == sum(lengths)


def test_ratios_are_paired_inside_a_round():
    facts = {"tokens": 100, "flops": 2e9, "shape": "x", "count": 1, "supervised": 1, "rows_per_step": 1, "lr": 1.0}

    def runs(*seconds):
        return [{"cpu_s": s, "wall_s": 2 * s, "slots": 100, "peak_rss_mb": 10.0 * s} for s in seconds]

    records = {"luthier": runs(1, 2, 4), "trl": runs(2, 4, 12), "trl_packing": runs(3, 1, 20)}
    found = control.summary(facts, [10.0, 10.0, 10.0], records, dict.fromkeys(records, 1.5), 2.0)
    assert found["ratios"]["luthier/trl"] == {"median": 2.0, "range": [2.0, 3.0], "clear": True}
    assert found["ratios"]["luthier/trl_packing"] == {"median": 3.0, "range": [0.5, 5.0], "clear": False}
    assert found["ratios"]["luthier/trl_best"]["arm"] == "trl_packing"
    first = found["arms"][0]
    assert (first["tokens_per_cpu_s"], first["tokens_per_s"], first["mfu"]) == (50.0, 25.0, 0.1)
    assert first["peak_rss_mb"] == 40.0


def test_arms_are_chosen():
    assert control.choose([], None) == ["luthier", "luthier_padded", "transformers"]
    assert control.choose(["documents"], None) == ["luthier", "documents"]
    with pytest.raises(RecipeError, match="no arm"):
        control.choose(["fast"], None)
    with pytest.raises(RecipeError, match="interpreter"):
        control.choose(["trl"], None)


def test_a_process_that_does_not_leave_is_ended(tmp_path, monkeypatch):
    (tmp_path / "peers.py").write_text("import time; time.sleep(600)", "utf-8")
    monkeypatch.setattr(control, "HERE", tmp_path)
    arm = control.Arm("trl", tmp_path, sys.executable, 1)
    wait = arm.process.wait
    monkeypatch.setattr(arm.process, "wait", lambda seconds=None: wait(seconds and 0.1))
    arm.end()
    assert arm.process.returncode == -9


@pytest.mark.slow
def test_arms_do_the_same_work():
    found = control.bench(shape="tiny", rows=32, rounds=1)
    losses = {arm["name"]: arm["loss"] for arm in found["arms"]}
    assert set(losses) == {"luthier", "luthier_padded", "transformers"}
    before = found["work"]["loss_before"]
    assert all(abs(loss - losses["luthier"]) < 2e-6 for loss in losses.values())
    assert before - losses["luthier"] > 1e-5
    positions = {arm["name"]: arm["computed_positions"] for arm in found["arms"]}
    assert positions["luthier"] == found["work"]["tokens"] < positions["transformers"]
    assert found["gemm_gflops"] > 0
