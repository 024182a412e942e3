"""Full tuning with freezing, biases, last layers."""

from __future__ import annotations

import models as tiny
import pytest
import torch

from luthier.core.errors import ModelError
from luthier.methods import METHODS
from luthier.methods.layers import parse


def names(spec: dict[str, object], kind: str = "llama") -> set[str]:
    """What is trained."""
    return set(METHODS.parse({"name": "full", **spec}).attach(tiny.base(kind), 0).parameters())


def test_pattern_that_matches_nothing_lists_candidates() -> None:
    """`embeddings` on a Llama: its table is called embed_tokens."""
    with pytest.raises(ModelError) as caught:
        names({"freeze": ["embeddings"]})
    assert "model.embed_tokens.weight" in str(caught.value)


def test_freezing() -> None:
    """By part of the name, by glob, by layer, by kind."""
    everything = names({})
    assert not any("embed" in name for name in names({"freeze": ["embed_tokens"]}))
    assert names({"train": ["*.layers.1.*"]}) == {name for name in everything if ".layers.1." in name}
    assert not any(".layers.0." in name for name in names({"layers": "-1"}))
    assert "model.embed_tokens.weight" not in names({"embeddings": False})
    assert not any("norm" in name for name in names({"norms": False}))


def test_nothing_left_is_an_error() -> None:
    """train and freeze that cancel each other."""
    with pytest.raises(ModelError, match="nothing is left"):
        names({"train": ["layers.0"], "freeze": ["layers"]})


def test_tied_weights_are_told() -> None:
    """Freezing the embedding freezes the tied head; training it moves both."""
    attached = METHODS.parse("full").attach(tiny.base("qwen3"), 0)
    assert any("lm_head" in note for note in attached.notes)
    assert not any("lm_head" in name for name in attached.parameters())


@pytest.mark.parametrize(("text", "wanted"), [("4-7", [4, 5, 6, 7]), ("3", [3]), ("-2", [8, 9]), ("0-0", [0])])
def test_layer_ranges(text: str, wanted: list[int]) -> None:
    """As a recipe writes them."""
    assert list(parse(text, 10)) == wanted


@pytest.mark.parametrize("text", ["", "a", "5-3", "1-2-3"])
def test_wrong_layer_ranges(text: str) -> None:
    """Refused."""
    with pytest.raises((ValueError, ModelError)):
        parse(text, 10)


@pytest.mark.parametrize("spec", ["full", {"name": "last_layers", "count": 1}])
def test_half_precision_base_is_trained_in_float32(spec: object) -> None:
    """The master is float32, the module computes in bfloat16, off() gives the base's own bits back."""
    base = tiny.base("qwen3")
    base.model.to(torch.bfloat16)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        wanted = base.model(ids).logits
    attached = METHODS.parse(spec).attach(base, 0)
    assert {weight.dtype for weight in attached.parameters().values()} == {torch.float32}
    base.model(ids).logits.float().square().sum().backward()
    assert all(weight.grad is not None for weight in attached.parameters().values())
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, wanted)
        for weight in attached.parameters().values():
            weight.add_(0.05)
        assert not torch.equal(base.model(ids).logits, wanted)
        with attached.off():
            assert torch.equal(base.model(ids).logits, wanted)
        changed = base.model(ids).logits.float()
        attached.merge()
        assert torch.allclose(base.model(ids).logits.float(), changed, atol=0.2)
