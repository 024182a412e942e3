"""Certificates: merged LoRA, DoRA, rsLoRA and full tuning in three dtypes, against numbers computed here."""

import functools
import json
from pathlib import Path

import pytest
import torch
from export_world import CLASSES, made, rows_for, trained

from luthier.core.errors import CannotMerge, GateFailed, ModelError
from luthier.export.run import export

once = functools.cache(lambda name: trained(MERGEABLE[name]))
MERGEABLE = {
    "lora": {"name": "lora", "r": 4},
    "dora": {"name": "lora", "r": 4, "dora": True},
    "rslora": {"name": "lora", "r": 8, "rslora": True},
    "lora_with_norms": {"name": "lora", "r": 2, "train_norms": True},
    "ia3": "ia3",
    "full": "full",
    "bitfit": {"name": "last_layers", "count": 1},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["lora", "dora", "rslora"])
def test_certificate(name, dtype, tmp_path):
    adapted = once(name)
    rows = rows_for(adapted)
    found = export(adapted, rows, tmp_path / "out", "merged", dtype)
    assert found["merged"] == "shard by shard"
    assert found == json.loads((tmp_path / "out" / "certificate.json").read_text())
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype)).eval()
    assert next(plain.parameters()).dtype == getattr(torch, dtype)
    ids = torch.tensor(rows[0].input_ids.tolist())[None]
    with torch.no_grad():
        mine = adapted.base.model(input_ids=ids).logits[0]
        gap = (mine - plain(input_ids=ids).logits[0].float()).abs().max()
        with adapted.off():
            base = adapted.base.model(input_ids=ids).logits[0]
    assert (mine - base).abs().max() > 0.5
    assert gap <= found["max_logit_difference"] * 1.01 + 1e-7
    if dtype == "float32":
        assert found["max_logit_difference"] <= 1e-5 * max(1, found["logit_size"])
        assert found["greedy"]["identical"] == found["greedy"]["prompts"] == 4
        assert abs(found["perplexity"]["before"] / found["perplexity"]["after"] - 1) < 1e-5
    else:
        assert found["top1_agreement"] >= 0.99
        assert found["max_logit_difference"] > 1e-5
    assert found["template"]["prompts"] == found["template"]["equal_ids"] == 6


@pytest.mark.parametrize("name", ["lora_with_norms", "ia3", "full", "bitfit"])
def test_the_other_kinds_that_merge(name, tmp_path):
    adapted = made(MERGEABLE[name], scale=0.02)
    found = export(adapted, rows_for(adapted), tmp_path / "out", "merged")
    assert found["passed"]
    assert found["merged"] == "shard by shard"


def test_shards_are_bounded_and_equal_the_merge_in_memory(tmp_path):
    from safetensors.torch import load_file

    adapted = made(MERGEABLE["dora"])
    found = export(adapted, rows_for(adapted), tmp_path / "out", {"name": "merged", "shard": "600KB"})
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    biggest = max(weight.numel() * 4 for weight in adapted.base.model.state_dict().values())
    assert found["shards"] == len(files) > 2
    assert found["largest_shard_bytes"] <= max(600_000, biggest)
    made_here = {name: tensor for file in files for name, tensor in load_file(file).items()}
    adapted.merge(tmp_path / "whole")
    for name, tensor in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(tensor, made_here[name]), name


REFUSED = {
    "prefix": {"name": "prefix", "length": 4},
    "prompt": {"name": "prompt", "length": 4},
    "p_tuning": {"name": "p_tuning", "length": 4, "hidden": 16},
    "bottleneck": {"name": "bottleneck", "reduction": 4},
    "dynamic_prefix": {"name": "dynamic_prefix", "length": 3, "hidden": 8},
    "multitask_prefix": {"name": "multitask_prefix", "length": 3, "tasks": ("a", "b")},
    "stack": {"name": "stack", "methods": ({"name": "lora", "r": 2}, {"name": "prefix", "length": 3})},
}
PAGE = " ".join((Path(__file__).parents[3] / "docs" / "export.md").read_text("utf-8").split())


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_merge_says_why_in_the_words_of_the_page(name, tmp_path):
    adapted = made(REFUSED[name])
    for kind in ("merged", "gguf", "vllm", "ollama"):
        with pytest.raises(CannotMerge) as caught:
            export(adapted, rows_for(adapted), tmp_path / "out", kind)
        assert caught.value.what in PAGE
        assert ("parts" if name == "stack" else "its effect depends on the input") in caught.value.what
        assert caught.value.remedy == "export the adapter itself"
    if name not in ("prefix", "prompt", "p_tuning"):
        with pytest.raises(ModelError) as caught:
            export(adapted, rows_for(adapted), tmp_path / "out", "bundle")
        assert caught.value.what.replace(name, "bottleneck", 1) in PAGE
        assert name in PAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lora", "dora", "full", *REFUSED])
def test_adapter_folder_reloads_with_the_same_logits(name, tmp_path):
    """R5."""
    adapted = made({**MERGEABLE, **REFUSED}[name])
    found = export(adapted, rows_for(adapted), tmp_path / "out", "adapter")
    assert found["max_logit_difference"] <= 1e-5 * max(1, found["logit_size"])
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert list((tmp_path / "out").rglob("adapter_model.safetensors"))


def test_a_spoiled_merge_is_not_published(tmp_path, monkeypatch):
    """Outside the tolerance: nothing appears, exit 1."""
    from luthier.methods.modules.low_rank import LowRank

    right = LowRank.folded
    monkeypatch.setattr(LowRank, "folded", lambda self, name, weight: right(self, name, weight) * 1.001)
    adapted = made(MERGEABLE["lora"])
    with pytest.raises(GateFailed) as caught:
        export(adapted, rows_for(adapted), tmp_path / "out", "merged")
    assert caught.value.exit_code == 1
    assert "largest logit difference" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_never_merged_twice(tmp_path):
    adapted = made(MERGEABLE["lora"])
    export(adapted, rows_for(adapted), tmp_path / "merged", "merged")
    adapted.save(tmp_path / "adapter")
    from luthier.adapted import load

    with pytest.raises(ModelError, match="weights"):  # luthier.json names another base
        load(tmp_path / "adapter", base=str(tmp_path / "merged"))
    card = json.loads((tmp_path / "adapter" / "luthier.json").read_text())
    del card["base"]
    (tmp_path / "adapter" / "luthier.json").write_text(json.dumps(card))
    again = load(tmp_path / "adapter", base=str(tmp_path / "merged"))  # nothing says which base it was
    with pytest.raises(CannotMerge, match="already holds this adapter"):
        export(again, rows_for(again), tmp_path / "twice", "merged")
    adapted.attached.merge()
    with pytest.raises(CannotMerge, match="already merged"):
        export(adapted, rows_for(adapted), tmp_path / "third", "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_a_chain_of_merges_remembers_every_adapter(tmp_path):
    """Another adapter was merged after the first: the first one is in there all the same."""
    from luthier.adapted import load

    first, second = made(MERGEABLE["lora"]), MERGEABLE["rslora"]
    export(first, rows_for(first), tmp_path / "one", "merged")
    later = made(second, path=tmp_path / "one", template="chat")
    found = export(later, rows_for(later), tmp_path / "two", "merged")
    assert len(found["adapters"]) == 2
    first.save(tmp_path / "adapter")
    card = json.loads((tmp_path / "adapter" / "luthier.json").read_text())
    del card["base"]
    (tmp_path / "adapter" / "luthier.json").write_text(json.dumps(card))
    again = load(tmp_path / "adapter", base=str(tmp_path / "two"))
    with pytest.raises(CannotMerge, match="already holds this adapter"):
        export(again, rows_for(again), tmp_path / "three", "merged")


def test_base_files_stay_as_they_are(tmp_path):
    from luthier.core.fingerprint import of_folder

    adapted = once("lora")
    before, weights = of_folder(adapted.base.path), adapted.attached.state()
    export(adapted, rows_for(adapted), tmp_path / "out", "merged", "bfloat16")
    assert of_folder(adapted.base.path) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in adapted.attached.state().items())


def test_classification(tmp_path):
    adapted = made(MERGEABLE["lora"], "classify", CLASSES, scale=0.05)
    rows = rows_for(adapted)
    for kind in ("adapter", "merged"):
        found = export(adapted, rows, tmp_path / kind, kind)
        assert found["positions"] == len(rows)
        assert found["top1_agreement"] == 1
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert list(config["id2label"].values()) == list(CLASSES)


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    adapted = made(MERGEABLE["lora"])
    with pytest.raises(ModelError, match="not empty"):
        export(adapted, rows_for(adapted), tmp_path / "out", "adapter")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
