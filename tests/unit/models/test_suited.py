"""Does a model fit a task: refused by its config before weights are read, or by what a short row shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models as tiny
import numpy as np
import pytest
import torch
import transformers

from luthier.core.errors import ModelError
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.methods import METHODS
from luthier.models import forward, load, suited
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.pipeline import prepare
from luthier.recipe import Recipe
from luthier.tasks import TASKS


def saved(place: Path, model: transformers.PreTrainedModel) -> ModelSettings:
    """A folder of an architecture that the battery lacks."""
    model.save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return ModelSettings(path=str(place), device="cpu")


@pytest.mark.parametrize("task", ["instruct", "language_model", "{name: classify, by: likelihood}"])
def test_encoders_do_tasks_with_a_head_only(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their attention sees the token that a language model should predict; told before a weight is read."""
    monkeypatch.setattr("luthier.models.load.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    recipe = Recipe.parse(f"model: {{path: '{tiny.folder('bert')}'}}\ntask: {task}\ndata: {{train: x.jsonl}}\n")
    with pytest.raises(ModelError, match="sees the ones behind it") as caught:
        prepare.load_model(recipe, TASKS.parse(recipe.task), (), "single")
    assert caught.value.where == "model.path"
    assert caught.value.remedy


def test_an_encoder_of_a_name_that_is_not_known_shows_itself(tmp_path: Path, monkeypatch: Any) -> None:
    """RoFormer loads as a causal model and is none: one token changed behind moves the states before it.

    Its output layer, which is no plain head, would be refused even earlier.
    """
    monkeypatch.setattr(load.logit_scale, "checked", lambda base: base.anatomy)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.RoFormerConfig(embedding_size=32, max_position_embeddings=64, **sizes, **tiny.SMALL)
    torch.manual_seed(0)
    base = load_base(saved(tmp_path, transformers.RoFormerForCausalLM(config)))
    with pytest.raises(ModelError, match="lets tokens see the ones behind them"):
        suited.prove_causal(base)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt", "gpt2"])
def test_decoders_are_causal(kind: str) -> None:
    """Nothing before the changed token moves; a cast model is no exception."""
    base = tiny.base(kind)
    suited.prove_causal(base)
    base.model.to(torch.bfloat16)
    suited.prove_causal(base)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WIDE = {"max_position_embeddings": 64, **SIZES, **tiny.SMALL}
SPLIT = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
MODERN = {"cls_token_id": 1, "sep_token_id": 2}
HEADS = {
    "bert": lambda: transformers.BertConfig(**WIDE),
    "roberta": lambda: transformers.RobertaConfig(**WIDE),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**WIDE),
    "distilbert": lambda: transformers.DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64, **tiny.SMALL
    ),
    "electra": lambda: transformers.ElectraConfig(embedding_size=32, **WIDE),
    "mpnet": lambda: transformers.MPNetConfig(**WIDE),
    "albert": lambda: transformers.AlbertConfig(embedding_size=32, **WIDE),
    "deberta": lambda: transformers.DebertaConfig(**WIDE, **SPLIT),
    "deberta-v2": lambda: transformers.DebertaV2Config(**WIDE, **SPLIT, position_buckets=16),
    "modernbert": lambda: transformers.ModernBertConfig(**WIDE, **MODERN),
    "modernbert-mean": lambda: transformers.ModernBertConfig(**WIDE, **MODERN, classifier_pooling="mean"),
}


def classifier(place: Path, config: transformers.PreTrainedConfig) -> ModelSettings:
    """A saved classifier with wide weights, so that what a head leaves out shows."""
    torch.manual_seed(1)
    config.num_labels = len(tiny.LABELS)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return saved(place, model)


def rows(*lengths: int) -> list[Row]:
    """Ordinary tokens."""
    source = np.random.default_rng(3)
    ids = [source.integers(4, tiny.VOCAB, length).astype(np.int32) for length in lengths]
    return [Row(f"r{index}", one, one, target=index) for index, one in enumerate(ids)]


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_logits_of_a_head_are_the_models_own(kind: str, tmp_path: Path) -> None:
    """Three rows of a batch against stock transformers, one by one; LoRA and the whole head get gradients."""
    settings = classifier(tmp_path, HEADS[kind]())
    base = load_base(settings, task="classify", labels=tiny.LABELS)
    given = rows(9, 5, 7)
    with torch.no_grad():
        found = forward.row_logits(base, from_rows(given))
        wanted = [base.model(input_ids=torch.tensor(row.input_ids)[None].long()).logits[0] for row in given]
    assert torch.allclose(found, torch.stack(wanted), atol=1e-5)
    attached = METHODS.parse({"name": "lora", "r": 2}).attach(base, 0)
    forward.row_logits(base, from_rows(given)).square().sum().backward()
    assert not [name for name, weight in attached.parameters().items() if weight.grad is None]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("pools in a way", lambda: transformers.EuroBertConfig(**WIDE)),
        ("no classification head", lambda: transformers.ErnieConfig(**WIDE)),
    ],
    ids=["eurobert", "ernie"],
)
def test_heads_that_pool_otherwise_are_refused(kind: str, config: object, tmp_path: Path) -> None:
    """At loading, with the list of what is known: what trains would not be what transformers computes."""
    settings = classifier(tmp_path, config())
    with pytest.raises(ModelError, match=kind) as caught:
        load_base(settings, task="classify", labels=tiny.LABELS)
    assert "DistilBERT" in caught.value.remedy


def test_a_prefix_needs_an_attention_that_can_be_replaced(tmp_path: Path) -> None:
    """DeBERTa goes on with its own: the prefix would do nothing, and the flat layout would mix rows."""
    settings = classifier(tmp_path, HEADS["deberta-v2"]())
    base = load_base(settings, task="classify", labels=tiny.LABELS)
    with pytest.raises(ModelError, match="cannot be replaced"):
        METHODS.parse({"name": "prefix", "length": 3}).attach(base, 0)
    with pytest.raises(ModelError, match="cannot be replaced"):
        forward.row_logits(base, from_rows(rows(5, 7)), layout="flat")
