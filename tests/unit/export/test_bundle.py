"""A bundle in an interpreter that can import neither luthier nor peft."""

import subprocess
import sys

import pytest
from conftest import CLASSES, TEXTS, made, rows_for, trained

from luthier.core.errors import ModelError
from luthier.export.run import export

BLOCK = """
import importlib.abc, runpy, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("luthier", "peft", "accelerate", "datasets"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
script = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
assert "luthier" not in sys.modules and "peft" not in sys.modules
"""


def asked(folder, text):
    done = subprocess.run(
        [sys.executable, "-I", "-c", BLOCK, str(folder / "answer.py"), text],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
def test_transformers_alone(name, tmp_path):
    adapted = trained({"name": name, **({"r": 4} if name == "lora" else {"length": 6})})
    found = export(adapted, rows_for(adapted), tmp_path / "out", "bundle")
    assert found["passed"]
    assert found["prompts"]["equal_ids"] == found["prompts"]["compared"] == 6
    assert found["max_logit_difference"] <= 1e-5 * max(1, found["logit_size"])
    question = TEXTS[0][0]
    assert asked(tmp_path / "out", question) == adapted.generate(question, 200)
    needs = (tmp_path / "out" / "requirements.txt").read_text()
    assert "transformers==" in needs
    assert "peft" not in needs


def test_a_classifier(tmp_path):
    adapted = made({"name": "lora", "r": 4}, "classify", CLASSES, scale=0.05)
    rows = rows_for(adapted)
    found = export(adapted, rows, tmp_path / "out", "bundle")
    assert found["top1_agreement"] == 1
    assert asked(tmp_path / "out", TEXTS[0][0]) in CLASSES


@pytest.mark.parametrize("method", [{"name": "bottleneck", "reduction": 4}, {"name": "dynamic_prefix", "length": 2}])
def test_what_transformers_cannot_run_is_refused(method, tmp_path):
    adapted = made(method)
    with pytest.raises(ModelError, match="transformers alone cannot run it"):
        export(adapted, rows_for(adapted), tmp_path / "out", "bundle")
    assert not list(tmp_path.iterdir())
