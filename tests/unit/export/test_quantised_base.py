"""Runs on a quantised base: everything but the adapter is merged into, and certified on, the unquantised one."""

import json
import sys
from pathlib import Path

import pytest
import torch
from export_world import made, rows_for

from luthier.export.run import export
from luthier.methods.targets import packing

sys.path.insert(0, str(Path(__file__).parents[2] / "battery"))
LORA = {"name": "lora", "r": 4}


def rounded():
    """An adapted model whose base stands for a packed one: its weights are on a grid, and it says that it is nf4."""
    adapted = made(LORA)
    model = adapted.base.model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "lora" not in name and "embed" not in name:
                step = weight.abs().max() / 64
                weight.copy_((weight / step).round() * step)
    model.is_quantized = True
    model.config.quantization_config = {"load_in_4bit": True}
    assert packing(adapted.base) == "nf4"
    return adapted


@pytest.mark.parametrize("kind", ["merged", "gguf", "vllm", "ollama", "bundle"])
def test_merged_into_the_unquantised_base(kind, tmp_path):
    if kind in ("gguf", "ollama"):
        pytest.importorskip("gguf")
    adapted = rounded()
    found = export(adapted, rows_for(adapted), tmp_path / "out", kind)
    assert found["passed"]
    assert found["max_logit_difference"] <= 1e-5 * found["logit_size"]
    seen = found["trained_on"]
    assert seen["quantize"] == "nf4"
    difference = seen["difference_to_the_quantised_model"]
    assert difference["max_logit_difference"] > 100 * found["max_logit_difference"]
    assert difference["rows"] == 6
    assert seen["perplexity"]["unquantised"] == found["perplexity"]["before"] != seen["perplexity"]["quantised"]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "Training saw the base quantised (nf4)" in card
    assert f"at most {difference['max_logit_difference']:.4g} " in card
    if kind == "merged":
        config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
        assert "quantization_config" not in config
        same = export(made(LORA), rows_for(adapted), tmp_path / "plain", "merged")
        assert same["files"]["model.safetensors"] == found["files"]["model.safetensors"]
        assert "trained_on" not in same
        assert "quantised" not in (tmp_path / "plain" / "README.md").read_text("utf-8")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_packed_base(quantize, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")
    from models import folder

    adapted = made(LORA, path=folder("llama"), template="plain", quantize=quantize, device="cpu")
    rows = rows_for(adapted)
    for kind in ("merged", "bundle"):
        found = export(adapted, rows, tmp_path / kind, kind)
        assert found["passed"]
        assert found["trained_on"]["quantize"] == quantize
        assert found["trained_on"]["difference_to_the_quantised_model"]["max_logit_difference"] > 1e-3
    same = export(made(LORA, path=folder("llama"), template="plain"), rows, tmp_path / "plain", "merged")
    assert (
        json.loads((tmp_path / "merged" / "certificate.json").read_text())["files"]["model.safetensors"]
        == (same["files"]["model.safetensors"])
    )
    assert export(adapted, rows, tmp_path / "adapter", "adapter")["passed"]
