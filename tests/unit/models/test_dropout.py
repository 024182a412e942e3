"""`model.dropout`: bounds, every dropout of every architecture set, and a proof that notices one that does nothing."""

from __future__ import annotations

from typing import Any

import models as tiny
import pytest
import torch
from torch import nn

from luthier.core.errors import ModelError, RecipeError
from luthier.models import dropout
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.recipe import Recipe


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_bounds(rate: float) -> None:
    """By the recipe, not by a RuntimeError of torch."""
    with pytest.raises(RecipeError, match="dropout"):
        Recipe.parse(f"model: {{dropout: {rate}}}\ndata: {{train: x.jsonl}}\n")


@pytest.mark.parametrize(
    ("kind", "sites"), [("llama", 2), ("qwen3", 2), ("opt", 6), ("gpt2", 7), ("t5", 24), ("bert", 8)]
)
def test_every_dropout_acts(kind: str, sites: int) -> None:
    """Each call of a forward has the rate; two forwards in training mode differ, in evaluation they do not."""
    labels = tiny.LABELS if kind == "bert" else None
    settings = ModelSettings(path=str(tiny.folder(kind)), device="cpu", dropout=0.25)
    base = load_base(settings, task="classify" if labels else "language_model", labels=labels)
    assert not base.model.training
    ids = torch.arange(4, 12)[None]
    options = {"decoder_input_ids": ids} if kind == "t5" else {}
    base.model.train()
    watch = dropout.Watch()
    with torch.no_grad(), watch:
        one, two = (base.model(ids, **options).logits for _ in range(2))
    assert not torch.equal(one, two)
    assert {rate for _, _, rate, _ in watch.seen} == {0.25}
    assert len(watch.seen) == 2 * sites
    base.model.eval()
    with torch.no_grad():
        assert torch.equal(base.model(ids, **options).logits, base.model(ids, **options).logits)


class Silent(nn.Dropout):
    """Drops nothing."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """As it came."""
        return given


def test_one_silent_module_among_many_is_found() -> None:
    """The other dropouts of the model act, so that two forwards differ all the same."""
    model: Any = tiny.base("gpt2").model
    model.transformer.h[1].mlp.dropout = Silent()
    with pytest.raises(ModelError, match=r"h\.1\.mlp\.dropout is not reached"):
        dropout.set_dropout(model, 0.25)


def test_attention_that_ignores_its_rate_is_found() -> None:
    """A rate that is read from elsewhere keeps its old value."""
    model: Any = tiny.base("llama").model

    class Deaf(type(model.model.layers[0].self_attn)):  # type: ignore[misc]
        attention_dropout = property(lambda self: 0.0, lambda self, value: None)

    model.model.layers[1].self_attn.__class__ = Deaf
    with pytest.raises(ModelError, match=r"the attention of model\.layers\.1\.self_attn drops 0"):
        dropout.set_dropout(model, 0.25)


def test_falcon_never_drops_attention() -> None:
    """Its own code calls the attention without its rate: two forwards differ by the other dropouts alone."""
    settings = ModelSettings(path=str(tiny.folder("falcon")), device="cpu", dropout=0.25)
    with pytest.raises(ModelError, match=r"the attention of transformer\.h\.0\.self_attention drops 0"):
        load_base(settings)


def test_no_dropout_at_all_is_refused() -> None:
    """Where there is nothing to set."""
    model: Any = tiny.base("llama").model
    for layer in model.model.layers:
        layer.self_attn = Plain(layer.self_attn)
    with pytest.raises(ModelError, match="nothing in this architecture"):
        dropout.set_dropout(model, 0.25)


class Plain(nn.Module):
    """An attention without dropout."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.project = inner.o_proj

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:
        """One projection."""
        return self.project(hidden_states), None
