"""Folders in the words of transformers 4, which transformers 5 reads to the very same model and ids."""

import json

import pytest
import torch
from export_world import TEXTS, made, rows_for

from luthier.export import readers
from luthier.export.run import export

LORA = {"name": "lora", "r": 4}


@pytest.mark.parametrize("kind", ["merged", "vllm", "bundle"])
def test_both_words_and_the_same_model(kind, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapted = made(LORA)
    rows = rows_for(adapted)
    export(adapted, rows, tmp_path / "new", kind)
    with monkeypatch.context() as patch:
        patch.setattr(readers, "for_older_readers", lambda folder: None)
        patch.setattr(readers, "older_tokenizer", lambda file: None)
        export(adapted, rows, tmp_path / "plain", kind)
    new, plain = (tmp_path / name / ("model" if kind == "bundle" else "") for name in ("new", "plain"))
    config = json.loads((new / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert "rope_scaling" not in config
    words = json.loads((new / "tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert words["additional_special_tokens"] == ["<|user|>", "<|assistant|>"]
    assert "extra_special_tokens" not in words
    assert words["chat_template"] == (new / "chat_template.jinja").read_text()
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (new, plain)]
    assert tokenizers[0].all_special_ids == tokenizers[1].all_special_ids
    assert [str(t) for t in tokenizers[0].extra_special_tokens] == ["<|user|>", "<|assistant|>"]
    for question, _ in TEXTS:
        asked = [{"role": "user", "content": question + " <|user|>"}]
        first, second = (t.apply_chat_template(asked, add_generation_prompt=True) for t in tokenizers)
        assert first["input_ids"] == second["input_ids"]
    ids = torch.tensor(rows[0].input_ids.tolist())[None]
    with torch.no_grad():
        first, second = (AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits for folder in (new, plain))
    assert torch.equal(first, second)


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("LlamaConfig", {"rope_parameters": YARN}, {"rope_theta": 5e5, "rope_scaling": {"factor": 4.0}}),
        ("GPTNeoXConfig", {}, {"rotary_emb_base": 10000.0, "rotary_pct": 0.25}),
        ("PhiConfig", {}, {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}),
        ("Gemma3TextConfig", {}, {"rope_theta": 1e6, "rope_local_base_freq": 10000.0}),
        ("GPT2Config", {}, {"torch_dtype": "bfloat16"}),
    ],
)
def test_the_old_names_mean_the_same_to_transformers_5(name, given, wanted, tmp_path):
    import transformers

    config = getattr(transformers, name)(dtype="bfloat16", **given)
    config.save_pretrained(tmp_path)
    before = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert readers.older_config(tmp_path / "config.json")
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["torch_dtype"] == "bfloat16"
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert found[key].items() >= value.items()
            assert "rope_theta" not in found[key]
        else:
            assert found[key] == value
    assert transformers.AutoConfig.from_pretrained(tmp_path).to_dict() == before
    changed = {"rope_type": "default", "rope_theta": 7.0}
    if "rope_theta" in found and name == "LlamaConfig":  # a window plan's change still wins
        assert transformers.AutoConfig.from_pretrained(tmp_path, rope_parameters=changed).rope_parameters == changed


def test_what_transformers_5_would_read_otherwise_is_put_back(tmp_path, monkeypatch):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    monkeypatch.setattr(
        readers, "_rope", lambda kind, parameters: {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    )
    assert not readers.older_config(tmp_path / "config.json")
    assert (tmp_path / "config.json").read_bytes() == before
