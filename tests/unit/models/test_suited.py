"""Does a model fit a task: refused by its config before weights are read, or by what a short row shows."""

from __future__ import annotations

from pathlib import Path

import models as tiny
import pytest
import torch
import transformers

from luthier.core.errors import ModelError
from luthier.models import suited
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


def test_an_encoder_of_a_name_that_is_not_known_shows_itself(tmp_path: Path) -> None:
    """RoFormer loads as a causal model and is none: one token changed behind moves the states before it."""
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
