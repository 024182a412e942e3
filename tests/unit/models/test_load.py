"""Loading a base: what is refused, what is found, what the fingerprint sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import models as tiny
import pytest
import torch

from luthier.core.errors import ModelError
from luthier.models.load import fingerprint_weights, load_base, read_config, resolve
from luthier.models.settings import ModelSettings


def copy_of(kind: str, place: Path) -> Path:
    """A folder that may be damaged."""
    return Path(shutil.copytree(tiny.folder(kind), place / kind))


def load(folder: Path, **options: object) -> object:
    """With settings for the CPU."""
    names = ("dtype", "dropout", "random_init", "quantize")
    settings = {name: options.pop(name) for name in names if name in options}
    return load_base(ModelSettings(path=str(folder), device="cpu", **settings), **options)  # type: ignore[arg-type]


def change(folder: Path, file: str, **values: object) -> None:
    """Edit a JSON file."""
    content = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps(content | values), "utf-8")


def test_a_plain_model() -> None:
    """Eval mode, frozen, sdpa, pad and stop tokens."""
    base = load(tiny.folder("llama"))
    assert not base.model.training
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert base.model.config._attn_implementation == "sdpa"
    assert (base.pad_id, base.stop_ids, base.kind, base.head) == (0, (2,), "decoder", ())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer"])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    """All of them at once."""
    folder = copy_of("llama", tmp_path)
    for path in folder.glob(f"{missing}*"):
        path.unlink()
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert missing in str(caught.value)


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    """The index names two files, none is there."""
    folder = copy_of("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "model-1.safetensors" in str(caught.value)
    assert "model-2.safetensors" in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A .bin is never opened, whatever is in it."""
    folder = copy_of("llama", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize("hostile", [{"auto_map": {"AutoModel": "x.Y"}}, {"_attn_implementation": "org/x"}])
def test_foreign_code_is_refused(tmp_path: Path, hostile: dict[str, object]) -> None:
    """Without a question on stdin."""
    folder = copy_of("llama", tmp_path)
    change(folder, "config.json", **hostile)
    with pytest.raises(ModelError):
        load(folder)


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remedy instead of a stack trace; a path that does not exist is not taken for a hub id."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="local cache"):
        resolve("some-organisation/some-model-that-is-not-here")
    with pytest.raises(ModelError, match="no model folder"):
        resolve("/no/such/folder")


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    """Missing layers are not filled with noise."""
    folder = copy_of("llama", tmp_path)
    change(folder, "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError):
        load(folder)


def test_stop_tokens_come_from_both_places(tmp_path: Path) -> None:
    """The tokenizer's first, then what generation_config adds."""
    folder = copy_of("llama", tmp_path)
    change(folder, "generation_config.json", eos_token_id=[1, 2])
    assert load(folder).stop_ids == (2, 1)


def test_pad_without_a_pad_token(tmp_path: Path) -> None:
    """Another token than the trained stop where there is one."""
    folder = copy_of("llama", tmp_path)
    change(folder, "tokenizer_config.json", pad_token=None)
    base = load(folder)
    assert base.pad_id != base.stop_ids[0]
    assert base.model.config.pad_token_id == base.pad_id


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    """More tokens than embedding rows."""
    folder = copy_of("llama", tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"extra{i}" for i in range(20)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="another model"):
        load(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
def test_classification_heads(kind: str) -> None:
    """Labels by name; the head and what the checkpoint lacks are declared; two seeds, two heads, one fingerprint."""
    labels = ("ham", "spam", "eggs")
    first, second = (load(tiny.folder(kind), task="classify", labels=labels, seed=seed) for seed in (1, 2))
    assert first.model.config.id2label == {0: "ham", 1: "spam", 2: "eggs"}
    assert first.head[0] in ("score", "classifier")
    head = first.model.get_submodule(first.head[0]).weight
    assert not torch.equal(head, second.model.get_submodule(first.head[0]).weight)
    assert (
        first.fingerprint
        == second.fingerprint
        == {**load(tiny.folder(kind), task="classify", labels=labels).fingerprint}
    )


def test_fingerprint_sees_weights_and_not_the_dtype(tmp_path: Path) -> None:
    """The same files give the same hash in every dtype; one changed number another one."""
    from safetensors.torch import load_file, save_file

    folder = copy_of("llama", tmp_path)
    assert load(folder, dtype="bfloat16").fingerprint["weights"] == load(folder).fingerprint["weights"]
    before = fingerprint_weights(folder)
    weights = load_file(folder / "model.safetensors")
    first = min(name for name, tensor in weights.items() if tensor.dim() > 1)
    weights[first][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint_weights(folder) != before


def test_fingerprint_sees_a_lora_that_was_merged_into_any_layer(tmp_path: Path) -> None:
    """A product of rank one on a single projection, and a bias or norm alone, make another base."""
    from safetensors.torch import load_file, save_file

    folder = copy_of("llama", tmp_path)
    before, file = fingerprint_weights(folder), folder / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        changed = {**weights, name: weights[name] + 1e-3}
        save_file(changed, file, metadata={"format": "pt"})
        assert fingerprint_weights(folder) != before, name
    save_file(weights, file, metadata={"format": "pt"})
    assert fingerprint_weights(folder) == before


def test_random_init_is_seeded() -> None:
    """Fresh weights, the same for the same seed."""
    one, same, other = (load(tiny.folder("llama"), random_init=True, seed=s).model.lm_head.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_read_config_fills_in_defaults() -> None:
    """The window plans need the whole rope dict."""
    config = read_config(tiny.folder("llama"))
    assert config["rope_parameters"]["rope_theta"] == 10000.0


def test_a_context_plan_is_built_in() -> None:
    """Changed config keys reach the model at construction, not after."""
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    plan = {"config": {"rope_parameters": rope, "max_position_embeddings": 256}, "resize": None}
    base = load(tiny.folder("llama"), context=plan)
    plain = load(tiny.folder("llama"))
    assert base.anatomy.window == 256
    assert base.context == plan
    assert torch.allclose(base.model.model.rotary_emb.inv_freq * 4, plain.model.model.rotary_emb.inv_freq)


def test_quantised_base_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as an extra to install, not as an ImportError."""
    from luthier.core.errors import MissingExtra

    monkeypatch.setattr("luthier.models.quantized.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="quant"):
        load(tiny.folder("llama"), quantize="nf4")
