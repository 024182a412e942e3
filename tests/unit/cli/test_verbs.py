"""Verbs that read a run directory, and the live progress."""

import json

import fake_run
import pytest

from luthier.cli import console
from luthier.cli.progress import Progress, line
from luthier.core.events import Emitter


@pytest.fixture
def run(tmp_path):
    return fake_run.make(tmp_path / "run")


def test_rows(run, luthier):
    records = [
        {"step": step, "epoch": step, "rows": ["a:1", "a:2"], "loss": [3.0 / step, 3.0], "tokens": [5, 5]}
        for step in range(1, 9)
    ]
    fake_run.write_lines(run.rows, records)
    found = json.loads(luthier("rows", run.path, "--json")[1])
    assert found["counts"] == {"learned": 1, "never_learned": 1}
    only = json.loads(luthier("rows", run.path, "--never-learned", "--json")[1])
    assert [row["id"] for row in only["rows"]] == ["a:2"]
    assert "a:1" in luthier("rows", run.path)[1]
    assert luthier("rows", run.path, "--spikes")[0] == 0


def test_rows_before_training(run, luthier):
    run.rows.unlink()
    assert luthier("rows", run.path)[0] == 2


def test_compare(run, tmp_path, luthier):
    other = fake_run.make(tmp_path / "other", "zh", overfit=True)
    found = json.loads(luthier("compare", run.path, other.path, "--json")[1])
    assert found["recipe"] == {"report.language": ["en", "zh"]}
    code, out, _ = luthier("compare", run.path, other.path)
    assert code == 0
    assert "report.language" in out
    assert "overfit" in out
    assert luthier("compare", run.path)[0] == 2


def test_verdict_refuses_evidence_without_hashes(run, luthier, monkeypatch):
    hashes = {"recipe": "a", "data": "b", "base": "c", "adapter": "d"}
    monkeypatch.setattr("luthier.pipeline.evidence.hashes", lambda place: hashes)
    code, out, _ = luthier("verdict", run.path, "--json")
    assert code == 1
    assert len([reason for reason in json.loads(out)["reasons"] if "stale" in reason]) == 4
    fake_run.write_json(run.metrics, {**fake_run.METRICS, "primary": "loss", "evidence": hashes})
    code, out, _ = luthier("verdict", run.path)
    assert (code, out.split("\n")[0]) == (0, "ship")
    fake_run.write_json(run.metrics, {**fake_run.METRICS, "primary": "loss", "evidence": {**hashes, "adapter": "x"}})
    assert luthier("verdict", run.path)[0] == 1


def test_verdict_of_a_failed_health(run, luthier, monkeypatch):
    monkeypatch.setattr("luthier.pipeline.evidence.hashes", lambda place: {})
    fake_run.write_json(run.health, fake_run.health("fail"))
    assert luthier("verdict", run.path)[0] == 1


def test_progress_lines(capsys):
    console.forget()
    with Progress() as progress:
        emit = Emitter(progress)
        for event in fake_run.events(30):
            emit(event.pop("kind"), **{key: value for key, value in event.items() if key != "time"})
    seen = capsys.readouterr()
    console.forget()
    assert seen.out == ""
    assert "880 rows to train" in seen.err
    assert "validation loss" in seen.err
    assert "5,263 tokens/s" in seen.err
    assert seen.err.count("step 1 ") == 1


def test_progress_on_a_terminal():
    import io

    from rich.console import Console

    screen = io.StringIO()
    with Progress() as progress:
        progress.console = Console(file=screen, force_terminal=True, width=120)
        for step in range(1, 5):
            Emitter(progress)(
                "train", step=step, loss=2.0, tokens_per_s=10.0, seconds=1.0, left_s=6.0 - step, memory_mb=9.0
            )
    assert "loss 2.0000" in screen.getvalue()
    assert "4/6" in screen.getvalue() or "3/6" in screen.getvalue() or "1/6" in screen.getvalue()


def test_a_line_of_numbers():
    record = {"loss": 1.25, "tokens_per_s": 5120.4, "left_s": 65.0, "memory_mb": 612.4}
    assert line(record) == "loss 1.2500 · 5,120 tokens/s · 1:05 left · 612 MB"
    assert line({}) == "loss –"


def test_the_end_of_a_run_tells_what_the_curve_says(run, monkeypatch):
    import io

    from rich.console import Console

    from luthier.cli import console, finished
    from luthier.pipeline.story import Run

    def told(judged):
        buffer = io.StringIO()
        for module in (console, finished):
            monkeypatch.setattr(module, "out", lambda: Console(file=buffer, width=200))
        fake_run.write_json(run.metrics, {**fake_run.METRICS, "overfitting": judged})
        finished.verdict(Run(run))
        return buffer.getvalue()

    said = told({"verdict": "memorising", "reason": "memorising: 3 of 4 canaries", "advice": "fewer epochs"})
    assert "memorising: 3 of 4 canaries" in said
    assert "→ fewer epochs" in said
    assert "curve" not in told({"verdict": "healthy", "reason": "healthy: …", "advice": ""})
