"""A bundle in an interpreter that can import what its requirements file names, and neither luthier nor peft."""

import bare_python
import pytest
from export_world import CLASSES, TEXTS, made, rows_for, trained

from luthier.core.errors import ModelError
from luthier.export.run import export


def asked(folder, tmp_path, text):
    """Only what the bundle's own requirements file names can be imported."""
    bare = bare_python.environment(folder / "requirements.txt", tmp_path / "bare")
    assert all(bare_python.missing(bare, name) for name in ("luthier", "peft", "accelerate", "datasets"))
    assert not bare_python.missing(bare, "transformers")
    return bare_python.run(bare, folder / "answer.py", text).removesuffix("\n")


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt", "p_tuning"])
def test_transformers_alone(name, tmp_path):
    adapted = trained({"name": name, **({"r": 4} if name == "lora" else {"length": 6})})
    found = export(adapted, rows_for(adapted), tmp_path / "out", "bundle")
    assert found["passed"]
    assert found["prompts"]["equal_ids"] == found["prompts"]["compared"] == 6
    assert found["max_logit_difference"] <= 1e-5 * max(1, found["logit_size"])
    question = TEXTS[0][0]
    assert asked(tmp_path / "out", tmp_path, question) == adapted.generate(question, 200)
    needs = (tmp_path / "out" / "requirements.txt").read_text()
    assert "transformers==" in needs
    assert "peft" not in needs


def test_a_classifier(tmp_path):
    adapted = made({"name": "lora", "r": 4}, "classify", CLASSES, scale=0.05)
    rows = rows_for(adapted)
    found = export(adapted, rows, tmp_path / "out", "bundle")
    assert found["top1_agreement"] == 1
    assert asked(tmp_path / "out", tmp_path, TEXTS[0][0]) in CLASSES


@pytest.mark.parametrize("method", [{"name": "bottleneck", "reduction": 4}, {"name": "dynamic_prefix", "length": 2}])
def test_what_transformers_cannot_run_is_refused(method, tmp_path):
    adapted = made(method)
    with pytest.raises(ModelError, match="transformers alone cannot run it"):
        export(adapted, rows_for(adapted), tmp_path / "out", "bundle")
    assert not list(tmp_path.iterdir())
