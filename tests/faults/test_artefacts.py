"""G3, G4: what a whole run leaves behind holds no secret of the environment, no home path and no pickle."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import hostile
import numpy as np
import pytest
import toy_run

CANARIES = {
    "HF_TOKEN": "hf_canary_0123456789",
    "OPENAI_API_KEY": "sk-canary-9876543210",
    "WANDB_API_KEY": "wandbcanary55555",
    "SMTP_PASSWORD": "canarypassword77",
    "AWS_SECRET_ACCESS_KEY": "canarysecret88888",
}
RECIPE = """
model: {path: builtin}
data: {train: rows.jsonl, max_length: 64}
train: {steps: 2, batch_size: 2, threads: 1, save_every: 1}
evaluate: {samples: {count: 1, max_new_tokens: 4}}
"""


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def is_pickle(path):
    """By the first bytes, as torch.save's archive, or by the name that others give it.

    An array file of numbers (the cache of encoded rows) is none: numpy reads it with allow_pickle=False.
    """
    with open(path, "rb") as handle:
        head = handle.read(200)
    if head.startswith(b"\x93NUMPY"):
        return b"|O" in head
    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"):
        return True
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    return zipfile.is_zipfile(path) and any(name.endswith(".pkl") for name in zipfile.ZipFile(path).namelist())


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run by the command line in a home of its own; (home, run directory, what it said)."""
    home = tmp_path_factory.mktemp("canaryhome")
    place = home / "project"
    place.mkdir()
    rows = [json.dumps({"instruction": f"What is number {n}?", "output": f"It is {n}."}) for n in range(30)]
    (place / "rows.jsonl").write_text("\n".join(rows))
    (place / "recipe.yaml").write_text(RECIPE)
    environment = {**os.environ, **CANARIES, "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "luthier", "run", "recipe.yaml", "--run-dir", str(place / "run"), "--debug"]
    done = subprocess.run(command, capture_output=True, cwd=place, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return home, place / "run", done.stdout + done.stderr


@pytest.mark.slow
def test_fault_G3_no_secret_and_no_home_path_in_any_artefact(whole_run, figure):
    home, run, said = whole_run
    found = [said, *(path.read_bytes() for path in files_of(run))]
    assert len(found) > 25, "adapter, checkpoints, logs, evaluation, health and report are there"
    hits = [text for text in (*CANARIES.values(), str(home)) for content in found if text.encode() in content]
    assert hits == []
    figure(len(CANARIES) + 1, len(CANARIES) + 1)


@pytest.mark.slow
def test_fault_G4_no_pickle_in_any_artefact_of_a_whole_run(whole_run, figure):
    _, run, _ = whole_run
    files = files_of(run)
    assert [path for path in files if is_pickle(path)] == []
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert len([path for path in files if path.parent.parent.name == "checkpoints"]) >= 8
    figure(len(files), len(files))


def test_fault_G4_a_checkpoint_is_safetensors_and_json_only(tmp_path):
    toy_run.train(tmp_path)
    files = files_of(tmp_path)
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}
    assert not [path for path in files if is_pickle(path) or path.name == "README.md"]


def test_the_search_for_pickles_finds_them(tmp_path):
    objects, numbers = tmp_path / "objects.npy", tmp_path / "numbers.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    np.save(numbers, np.arange(3))
    assert is_pickle(objects)
    assert not is_pickle(numbers)
    for name in hostile.pickles(tmp_path):
        path = Path(tmp_path / name)
        assert is_pickle(path)
        plain = path.rename(tmp_path / "harmless.json")
        assert is_pickle(plain)
        plain.rename(path)
