"""Every outcome has its exit code and its plain words; `--json` is one object; foreign text is inert."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import fake_run
import pytest
from payloads import FORBIDDEN, PAYLOADS

from luthier.cli import app, console
from luthier.core import errors
from luthier.core.events import Emitter

ROOT = Path(__file__).parents[3]


def broken(monkeypatch, error: BaseException) -> None:
    def dispatch(words):
        raise error

    monkeypatch.setattr(app, "dispatch", dispatch)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.GateFailed("x"), 1),
        (errors.RecipeError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.ModelError("x"), 2),
        (errors.MissingExtra("x", "serve"), 2),
        (errors.Interrupted("x"), 3),
        (KeyboardInterrupt(), 3),
        (errors.StopRequested("SIGTERM"), 3),
        (errors.Diverged("x"), 4),
        (errors.OutOfResource("x"), 5),
        (MemoryError(), 5),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 5),
        (PermissionError(errno.EACCES, "denied", "/x"), 2),
        (ValueError("boom"), 70),
        (RecursionError(), 70),
        (KeyError("k"), 70),
    ],
)
def test_exit_codes(monkeypatch, luthier, error, code):
    broken(monkeypatch, error)
    found, out, told = luthier("run", "x", "--json")
    assert found == code
    assert "Traceback" not in told
    assert told.startswith("error: ")
    assert json.loads(out)["exit_code"] == code


def test_what_where_and_remedy(monkeypatch, luthier):
    broken(monkeypatch, errors.RecipeError("no lr", where="r.yaml:3: train.lr", remedy="give one"))
    assert luthier("run", "x")[2] == "error: r.yaml:3: train.lr: no lr\n  → give one\n"


def test_the_traceback_only_on_demand(monkeypatch, capsys):
    broken(monkeypatch, ValueError("boom"))
    console.forget()
    with pytest.raises(SystemExit) as stop:
        app.main(["run", "x", "--debug"])
    assert stop.value.code == 70
    assert "Traceback" in capsys.readouterr().err
    console.forget()


@pytest.mark.parametrize("words", [("chek",), ("check",), ("check", "a", "--nope"), ("check", "missing.yaml")])
def test_mistakes_of_typing(luthier, words):
    code, out, told = luthier(*words)
    assert code == 2
    assert out == ""
    assert "→" in told


def test_help_names_every_verb(luthier):
    code, out, _ = luthier("--help")
    assert code == 0
    for verb, path in app.verbs().items():
        assert verb in out
        assert app.summary(path), verb


@pytest.mark.parametrize("verb", list(app.verbs()))
def test_help_of_every_verb(luthier, verb):
    code, out, _ = luthier(verb, "--help")
    assert code == 0
    assert f"luthier {verb}" in out


def test_no_colour_outside_a_terminal(tmp_path):
    run = fake_run.make(tmp_path / "run")
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    for words in (["--help"], ["report", str(run.path)], ["list", "methods"], ["nonsense"]):
        done = subprocess.run(
            [sys.executable, "-m", "luthier", *words], capture_output=True, env=environment, check=False
        )
        assert b"\x1b" not in done.stdout + done.stderr


def test_report_and_list_runs(tmp_path, luthier):
    run = fake_run.make(tmp_path / "runs" / "one")
    code, out, _ = luthier("report", run.path, "--json")
    assert code == 0
    assert Path(json.loads(out)["report"]) == run.report_html
    code, out, _ = luthier("list", "runs", "--root", tmp_path / "runs", "--json")
    assert json.loads(out)["runs"][0]["tuned_loss"] == 0.812


def test_report_of_something_else(tmp_path, luthier):
    assert luthier("report", tmp_path)[0] == 2


@pytest.mark.parametrize("task", ["instruct", "classify", "language_model"])
def test_new_writes_a_recipe_that_loads(tmp_path, luthier, task):
    from luthier.methods import METHODS
    from luthier.recipe import Recipe

    for method in METHODS.names():
        if method in ("stack", "peft", "multitask_prefix"):
            continue
        file = tmp_path / f"{method}.yaml"
        assert luthier("new", file, "--task", task, "--method", method, "--model", "my model/with: colon")[0] == 0
        assert Recipe.load(file).model.path == "my model/with: colon"
    assert luthier("new", file)[0] == 2
    assert luthier("new", tmp_path / "x.yaml", "--method", "loar")[0] == 2


def test_new_comments_are_settings(tmp_path, luthier):
    """Every commented setting of a method, taken literally, is valid."""
    from luthier.recipe import Recipe

    file = tmp_path / "lora.yaml"
    luthier("new", file)
    lines = file.read_text("utf-8").split("\n")
    at = lines.index(next(line for line in lines if line.startswith("  name: lora")))
    text = "\n".join(line.replace("  # ", "  ", 1) if at < place < at + 30 and line.startswith("  # ") else line
                     for place, line in enumerate(lines))  # fmt: skip
    assert Recipe.parse(text)


def test_payloads_are_inert_in_the_terminal(tmp_path, luthier):
    from luthier.cli.progress import Progress
    from luthier.cli.tables import diagnoses

    for payload in PAYLOADS:
        console.forget()
        with Progress() as progress:
            emit = Emitter(progress)
            emit("warning", what=payload, where=payload, remedy=payload)
            emit("spike", step=1, loss=2.0, rows=[payload])
            emit("early_stop", step=1, reason=payload)
        diagnoses({"diagnoses": [{"name": payload, "status": "warn", "evidence": payload, "advice": payload}]})
        console.failure([errors.Problem(payload, payload, payload)])
        console.json_out({"text": payload})
    code, out, told = luthier("--version")
    assert code == 0
    assert not FORBIDDEN & set(out + told)


def test_json_keeps_the_value(capsys):
    console.json_out({"a": "\x1b[31m\u202e<b>\ud800", "b": [1, None, 0.5]})
    assert json.loads(capsys.readouterr().out) == {"a": "\x1b[31m\u202e<b>\ud800", "b": [1, None, 0.5]}


def test_secrets_stay_out(monkeypatch, luthier):
    monkeypatch.setenv("HF_TOKEN", "hf_canary_123456789")
    broken(monkeypatch, ValueError("cannot use hf_canary_123456789"))
    _, out, told = luthier("run", "x", "--json")
    assert "canary" not in out + told
