"""The verb: flags reach the measurement, and what is printed says no more than was shown."""

import json

import pytest

from luthier.bench import control
from luthier.cli import bench, console

ARM = {"tokens_per_cpu_s": 50.0, "tokens_per_s": 25.0, "mfu": 0.5, "peak_rss_mb": 10.0, "loss": 1.0, "wall_s": [1.0]}
FOUND = {
    "gemm_gflops": 99.0,
    "clock": "cpu_s",
    "rounds": 2,
    "work": {"shape": "tiny", "count": 3, "tokens": 100, "dtype": "float32", "loss_before": 2.0},
    "arms": [
        {**ARM, "name": "luthier", "cpu_s": [1.0, 2.0]},
        {**ARM, "name": "trl", "cpu_s": [3.0, 5.0]},
        {**ARM, "name": "luthier_top", "cpu_s": [1.0, 1.9], "mfu": None},
    ],
    "ratios": {
        "luthier/trl": {"median": 2.75, "range": [2.5, 3.0], "clear": True},
        "luthier/luthier_top": {"median": 0.97, "range": [0.95, 1.0], "clear": False},
    },
    "dropped": [{"name": "luthier_int8", "why": "a cosine of 0.9"}],
}


@pytest.fixture
def asked(monkeypatch):
    seen = {}

    def measure(names, **given):
        seen.update(given, names=names)
        return FOUND

    monkeypatch.setattr(control, "bench", measure)
    monkeypatch.setenv("COLUMNS", "200")
    console.forget()
    yield seen
    console.forget()


def test_flags_reach_the_measurement_and_the_plot_is_written(asked, tmp_path, capsys):
    file = tmp_path / "speeds.png"
    code = bench.command(
        ["trl"], rows=3, rounds=2, data="mine.csv", python=["trl=a"], device="cpu", plot=file, json=True
    )  # fmt: skip
    assert code == 0
    assert (asked["names"], asked["data"], asked["pythons"], asked["device"]) == (["trl"], "mine.csv", ["trl=a"], "cpu")
    assert json.loads(capsys.readouterr().out)["dropped"][0]["name"] == "luthier_int8"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_ratio_that_was_not_shown_is_not_named(asked, capsys):
    bench.command()
    said = capsys.readouterr()
    assert "2.75 x faster (2.50–3.00)" in said.out
    assert "no difference shown (0.95–1.00)" in said.out
    assert "0.97" not in said.out
    assert "luthier_int8 was dropped: a cosine of 0.9" in said.err
