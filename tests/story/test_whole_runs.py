"""The story end to end on the built-in model: every file, resume after kill -9 to the bit, finished runs left alone."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch


@pytest.fixture
def place(tmp_path):
    """A folder with data and a recipe."""
    from luthier.data import builtin

    rows = [json.loads(line) for line in builtin.path("short_en").read_text("utf-8").splitlines()[:160]]
    kept = [{name: row[name] for name in ("instruction", "input", "output")} for row in rows]
    (tmp_path / "rows.json").write_text(json.dumps(kept, indent=1))
    (tmp_path / "recipe.yaml").write_text(f"""
model: {{path: builtin}}
data: {{train: {tmp_path / "rows.json"}, max_length: 64, split: {{group: none}}}}
method: {{name: lora, r: 4, dropout: 0.1}}
train: {{epochs: 3, batch_tokens: 400, lr: 2e-3, save_every: 3, evaluate_every: 5, threads: 1}}
evaluate: {{samples: {{count: 2, max_new_tokens: 8}}, generate_rows: 0, bootstrap: 100}}
""")
    return tmp_path


def luthier(place, *arguments, **options):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "luthier", *arguments], cwd=place, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    assert "Traceback" not in out + err
    return out


def weights_hash(run):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "adapter").glob("*.safetensors")
    }


def steps_of(run):
    from luthier.core.events import TIMING, read_jsonl

    keep = ("train", "validate", "checkpoint", "early_stop", "finished")
    return [
        {k: v for k, v in r.items() if k not in TIMING} for r in read_jsonl(run / "events.jsonl") if r["kind"] in keep
    ]


def test_a_run_has_every_file_of_the_contract_and_is_left_alone_afterwards(place):
    finish(luthier(place, "run", "recipe.yaml", "--run-dir", "run"), 0)
    run = place / "run"
    for name in (
        "status.json", "recipe.yaml", "recipe.resolved.yaml", "environment.json", "data/manifest.json",
        "data/preview.txt",
        "events.jsonl", "rows.jsonl", "checkpoints/best.json", "adapter/luthier.json", "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors", "evaluation/metrics.json", "evaluation/samples.jsonl",
        "evaluation/predictions.jsonl", "health.json", "report/report.html", "report/report.json", "report/curves.png",
        "report/samples.txt",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    assert "has not finished" not in (run / "report/report.html").read_text("utf-8")
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert metrics["tuned"]["loss"] < metrics["base"]["loss"]
    assert metrics["difference"]["loss"]["ci95"][1] < 0
    assert not [path for path in run.rglob("*") if path.suffix in (".pt", ".bin", ".pkl", ".pth")]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    out = finish(luthier(place, "run", "recipe.yaml", "--run-dir", "run"), 0)
    assert "finished" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    _peft_loads_it(place, run)


def _peft_loads_it(place, run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from luthier.adapted import load

    adapted = load(run)
    base = AutoModelForCausalLM.from_pretrained(adapted.base.path)
    ids = torch.tensor([[1, 40, 50, 60, 70]])
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(base, run / "adapter")(input_ids=ids).logits
        ours = adapted.base.model(input_ids=ids).logits
        with adapted.off():
            off = adapted.base.model(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(off, plain)
    assert not torch.allclose(ours, plain, atol=1e-4)


@pytest.mark.parametrize("method", ["{name: lora, r: 4, dropout: 0.1}", "full", "{name: prefix, length: 4}"])
def test_killed_and_started_again_ends_bitwise_equal(place, method):
    finish(luthier(place, "run", "recipe.yaml", f"method={method}", "--run-dir", "whole"), 0)
    whole = steps_of(place / "whole")
    total = sum(record["kind"] == "train" for record in whole)
    killed = luthier(place, "run", "recipe.yaml", f"method={method}", "--run-dir", "killed", start_new_session=True)
    events = place / "killed" / "events.jsonl"
    until = time.monotonic() + 200
    while time.monotonic() < until and killed.poll() is None:
        if events.is_file() and events.read_text().count('"train"') >= total // 2:
            break
        time.sleep(0.005)
    if killed.poll() is None:
        os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    finish(luthier(place, "run", "recipe.yaml", f"method={method}", "--run-dir", "killed"), 0)
    assert weights_hash(place / "killed") == weights_hash(place / "whole")
    assert steps_of(place / "killed") == whole


def test_sigterm_saves_exits_3_and_continues(place):
    stopped = luthier(place, "run", "recipe.yaml", "train.epochs=40", "train.early_stop=null", "--run-dir", "run")
    events = place / "run" / "events.jsonl"
    until = time.monotonic() + 200
    while time.monotonic() < until and not (events.is_file() and events.read_text().count('"train"') > 3):
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    finish(stopped, 3)
    assert json.loads((place / "run" / "status.json").read_text())["state"] == "interrupted"
    assert not (place / "run" / "adapter").exists(), "no final adapter from an unfinished run"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train.lrr=1"], "did you mean"),
        (["data.train=absent.json"], "absent.json"),
        (["model.path=absent"], "model"),
        (["model.path=org/absent"], "org/absent"),
        (["data.split.validation=0"], "validation"),
        (["method.r=0"], "method.r"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(place, arguments, hint):
    process = luthier(place, "run", "recipe.yaml", *arguments, "--run-dir", "bad")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    assert hint in out + err
    assert "Traceback" not in out + err


def test_a_changed_recipe_or_data_file_is_refused_on_resume(place):
    finish(luthier(place, "run", "recipe.yaml", "--run-dir", "run"), 0)
    (place / "run" / "status.json").write_text('{"state": "interrupted"}')
    process = luthier(place, "run", "recipe.yaml", "train.lr=1e-3", "--run-dir", "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "train.lr" in out + err
    rows = json.loads((place / "rows.json").read_text())
    rows[0]["output"] = "moon moon"
    (place / "rows.json").write_text(json.dumps(rows))
    process = luthier(place, "run", "recipe.yaml", "--run-dir", "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "sha256" in out + err
