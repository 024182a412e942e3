import json
import re
import string
import subprocess
import sys

import fake_run
import pytest

from luthier.core.rundir import RunDir
from luthier.report import headline, plots, render, words
from luthier.report.write import write


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_finished_run(tmp_path, language):
    run = fake_run.make(tmp_path / "run", language)
    page = write(run).read_text("utf-8")
    texts = words.table(language)
    assert texts["head.better"] in page
    assert texts["did.title"] in page
    assert "Ada Brook lives in Port Elm." in page
    assert "\u22122.402" in page
    assert f'lang="{texts["lang"]}"' in page
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    assert "Reed reed" in run.samples_text.read_text("utf-8")
    assert not re.search(r"(src|href)=.(?!data:)|<script|@import|url\(", page)


def test_r1_the_json_holds_everything(tmp_path):
    run = fake_run.make(tmp_path / "run", overfit=True)
    write(run)
    found = json.loads(run.report_json.read_text("utf-8"))
    assert found["recipe"]["method"]["r"] == 8
    assert len(found["curves"]["train"]) == 90
    assert [point["step"] for point in found["curves"]["validation"]] == list(range(0, 91, 10))
    assert found["metrics"]["tuned"]["loss"] == 0.812
    assert found["overfitting"]["verdict"] == "overfit"
    assert found["overfitting"]["since"] == 50
    assert found["headline"]["answer"] == "better"
    assert found["health"]["verdict"] == "ok"
    assert found["cost"]["tokens"] == 180_000
    assert found["cost"]["adapter_bytes"] == 200_000
    assert "ids" not in found["data"]["split"]


def test_every_state_of_a_run_gives_a_report(tmp_path):
    names = ["status", "resolved", "events", "manifest", "preview", "metrics", "samples", "health", "environment"]
    for missing in names:
        run = fake_run.make(tmp_path / missing)
        getattr(run, missing).unlink()
        assert write(run).is_file()
    empty = RunDir(tmp_path / "empty")
    empty.path.mkdir()
    assert words.table("en")["head.unmeasured"] in write(empty).read_text("utf-8")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "null", "\xff"])
def test_broken_files_are_named_not_fatal(tmp_path, content):
    run = fake_run.make(tmp_path / "run")
    for file in (run.metrics, run.health, run.manifest, run.environment, run.status):
        file.write_bytes(content.encode("latin-1"))
    page = write(run).read_text("utf-8")
    assert "metrics.json" in page


def test_an_unfinished_run_says_so(tmp_path):
    run = fake_run.make(tmp_path / "run", state="interrupted")
    assert "has not finished" in write(run).read_text("utf-8")


def test_a_failed_health_check_stands_in_the_headline(tmp_path):
    run = fake_run.make(tmp_path / "run")
    fake_run.write_json(run.health, fake_run.health("fail"))
    assert words.table("en")["head.health_fail"] in write(run).read_text("utf-8")


def test_repeated_steps_count_once(tmp_path):
    run = fake_run.make(tmp_path / "run")
    events = fake_run.events()
    fake_run.write_lines(run.events, [*events[:60], *events[40:]])
    write(run)
    assert len(json.loads(run.report_json.read_text("utf-8"))["curves"]["train"]) == 90


def test_a_long_curve_is_thinned(tmp_path):
    run = fake_run.make(tmp_path / "run")
    fake_run.write_lines(run.events, fake_run.events(steps=9000))
    write(run)
    curve = json.loads(run.report_json.read_text("utf-8"))["curves"]["train"]
    assert len(curve) <= 2001
    assert curve[-1]["step"] == 9000


def test_both_languages_have_the_same_keys_and_fields():
    one, two = words.table("en"), words.table("zh")
    assert one.keys() == two.keys()
    for key in one:
        fields = [{name for _, name, _, _ in string.Formatter().parse(table[key]) if name} for table in (one, two)]
        assert fields[0] == fields[1], key


def test_classification_tables(tmp_path):
    run = fake_run.make(tmp_path / "run")
    part = {"precision": 0.8, "recall": 0.9, "f1": 0.85, "rows": 50}
    metrics = {
        "split": "test",
        "rows": 100,
        "base": {"accuracy": 0.5, "f1_macro": 0.4},
        "tuned": {"accuracy": 0.9, "f1_macro": 0.88},
        "difference": {"accuracy": {"value": 0.4, "ci95": [0.3, 0.5], "p": 0.001}},
        "per_class": {"positive": part, "negative": part},
        "confusion": {"labels": ["negative", "positive"], "matrix": [[45, 5], [6, 44]]},
    }
    fake_run.write_json(run.metrics, metrics)
    run.resolved.write_text("task: {name: classify}\n", "utf-8")
    page = write(run).read_text("utf-8")
    assert json.loads(run.report_json.read_text("utf-8"))["headline"]["metric"] == "accuracy"
    assert "positive" in page
    assert ">45<" in page


def test_names_of_layers_leave_out_what_all_share():
    names = ["model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    found = render.heatmap([{"name": name, "gradient_norm": 0.1} for name in names])
    assert [name for name, _ in found["rows"]] == ["0.mlp.up_proj", "10.mlp.up_proj", "0.self_attn.q_proj"]
    assert render.heatmap([{"name": "lm_head", "gradient_norm": 0.1}])["rows"][0][0] == "lm_head"


def test_what_was_not_measured_is_not_called_ok(tmp_path):
    run = fake_run.make(tmp_path / "run")
    found = fake_run.health()
    found["diagnoses"].append(
        {"name": "forgetting", "status": "ok", "value": None, "threshold": None, "evidence": "not measured: no text"}
    )
    fake_run.write_json(run.health, found)
    assert '<span class="badge unmeasured">not measured</span>' in write(run).read_text("utf-8")


def test_the_loss_of_a_classification_is_per_row(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(plots, "draw", lambda curves, verdict, texts: seen.update(texts) or b"png")
    run = fake_run.make(tmp_path / "run")
    run.resolved.write_text("task: {name: classify}\n", "utf-8")
    write(run)
    assert seen["curve.y"] == "loss (per row)"


@pytest.mark.parametrize(
    ("low", "high", "floor", "answer"),
    [(-2, -1, 0, "better"), (1, 2, 0, "worse"), (-1, 1, 0, "unclear"), (-2, -1, 1.5, "unclear")],
)
def test_the_headline_needs_an_interval_beyond_zero_and_noise(low, high, floor, answer):
    metrics = {"base": {"loss": 3.0}, "tuned": {"loss": 3.0 + (low + high) / 2}, "noise_floor": {"loss": floor}}
    metrics["difference"] = {"loss": {"value": (low + high) / 2, "ci95": [low, high]}}
    assert headline.judge(metrics, "instruct").answer == answer


def test_interval_and_permutation_test_must_agree():
    assert headline.significant({"ci95": [0.04, 0.15], "p": 0.01})
    assert not headline.significant({"ci95": [0.04, 0.15], "p": 0.13})


def test_an_interval_of_two_documents_is_no_proof():
    metrics = {"base": {"loss": 4.2}, "tuned": {"loss": 1.9}, "rows": 4}
    metrics["difference"] = {"loss": {"value": -2.3, "ci95": [-2.4, -2.2], "p": 0.49}}
    found = headline.judge(metrics, "language_model")
    assert (found.answer, found.unconfirmed) == ("unclear", True)
    metrics["difference"]["loss"]["p"] = 0.001
    found = headline.judge(metrics, "language_model")
    assert (found.answer, found.unconfirmed) == ("better", False)


def test_no_interval_no_claim():
    assert headline.judge({"base": {"loss": 3.0}, "tuned": {"loss": 1.0}}, "instruct").answer == "unclear"


def test_without_a_chinese_font_the_picture_is_english(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "cjk_font", lambda: None)
    seen = {}
    monkeypatch.setattr(plots, "draw", lambda curves, verdict, texts: seen.update(texts) or b"png")
    write(fake_run.make(tmp_path / "run", "zh"))
    assert seen["curve.x"] == words.table("en")["curve.x"]


def test_a_report_needs_no_torch(tmp_path):
    run = fake_run.make(tmp_path / "run")
    code = "import sys; from luthier.report.write import write; from luthier.core.rundir import RunDir; "
    code += f"write(RunDir.open({str(run.path)!r})); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
