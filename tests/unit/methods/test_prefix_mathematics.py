"""The hand-worked prefix example and the mixture identity, on real attention modules."""

from __future__ import annotations

import math

import cells as battery
import models as tiny
import pytest
import torch
from torch import Tensor

from luthier.methods import METHODS


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(weights, output) of plain attention with scale √d."""
    weights = torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1)
    return weights, weights @ v


def test_hand_worked_example() -> None:
    """n = 3, P = 2, d = 4, W = I, X = e1, e2, e3, P = [[0,0,0,2],[0,0,0,0]], no causal mask."""
    x = torch.eye(3, 4)
    prefix = torch.tensor([[0.0, 0, 0, 2], [0, 0, 0, 0]])
    weights, out = attention(x, torch.cat([prefix, x]), torch.cat([prefix, x]))
    assert torch.allclose(weights[0], torch.tensor([0.177031, 0.177031, 0.291875, 0.177031, 0.177031]), atol=1e-6)
    assert torch.allclose(out[0], torch.tensor([0.291875, 0.177031, 0.177031, 0.354062]), atol=1e-6)
    assert float(weights[0, :2].sum()) == pytest.approx(0.354062, abs=1e-6)
    causal_weights, causal = attention(x[:1], torch.cat([prefix, x[:1]]), torch.cat([prefix, x[:1]]))
    assert torch.allclose(causal_weights[0], torch.tensor([0.274068, 0.274068, 0.451863]), atol=1e-6)
    assert torch.allclose(causal[0], torch.tensor([0.451863, 0, 0, 0.548137]), atol=1e-6)
    assert pytest.approx(0.291875, abs=1e-6) == (1 - 0.354062) * 0.451863


def test_mixture_identity_in_a_model() -> None:
    """In the first layer of a Llama with GQA: Attn' = (1 − λ) Attn + λ Attn_prefix, λ the prefix's mass."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    base = tiny.base("llama")
    attached = METHODS.parse({"name": "prefix", "length": 3, "init": "random"}).attach(base, 0)
    seen: list[tuple[Tensor, ...]] = []
    sdpa = AttentionInterface()["sdpa"]

    def watch(module, q, k, v, mask, **options):  # type: ignore[no-untyped-def]
        out, weights = sdpa(module, q, k, v, mask, **options)
        seen.append((q[0], k[0], v[0], out[0].transpose(0, 1)))
        return out, weights

    AttentionInterface.register("watched", watch)
    AttentionMaskInterface.register("watched", sdpa_mask)
    base.model.config._attn_implementation = "watched"
    row = battery.batch(False, battery.rows()[1:2])
    with torch.no_grad():
        battery.outputs(base, attached, row)
    q, k, v, out = seen[0]
    groups = q.shape[0] // k.shape[0]
    last = q.shape[1] - 1
    for head in range(q.shape[0]):
        keys, values = k[head // groups], v[head // groups]
        one = q[head, last : last + 1]
        weights, _ = attention(one, keys, values)
        share = weights[0, :3].sum()
        _, own = attention(one, keys[3:], values[3:])
        _, ahead = attention(one, keys[:3], values[:3])
        assert torch.allclose((1 - share) * own + share * ahead, out[head, last : last + 1], atol=1e-6)


def test_zero_prefix_is_not_a_no_op() -> None:
    """A zero prefix still takes softmax mass (PEFT's documentation says otherwise): nothing promises identity."""
    base = tiny.base("llama")
    attached = METHODS.parse({"name": "prefix", "length": 3}).attach(base, 0)
    with torch.no_grad():
        attached.own["prompt_embeddings"].zero_()
        assert float((battery.outputs(base, attached) - battery.outputs(base, None)).abs().max()) > 0.1


def test_activation_start_is_what_the_model_computes() -> None:
    """A prefix from a text's activations is the text before the row (its keys are rotated to where it stood)."""
    base = tiny.base("llama")
    attached = METHODS.parse({"name": "prefix", "length": 3, "init_text": "w7 w21 w33"}).attach(base, 0)
    ids = torch.tensor(base.tokenizer("w7 w21 w33")["input_ids"])
    row = battery.rows()[1]
    with torch.no_grad():
        whole = base.model(input_ids=torch.cat([ids, torch.tensor(row.input_ids)])[None]).logits[0, 3:]
        assert torch.allclose(battery.outputs(base, attached, battery.batch(False, [row])), whole, atol=1e-4)


def test_tied_form_has_half_the_numbers() -> None:
    """L·P·d, and K, V are projections of one table."""
    base = tiny.base("gpt2")
    free = METHODS.parse({"name": "prefix", "length": 4}).formula(base)
    tied = METHODS.parse({"name": "prefix", "length": 4, "tied": True}).formula(base)
    assert free == 2 * 2 * 4 * 32
    assert tied == 2 * 4 * 32
    attached = METHODS.parse({"name": "prefix", "length": 4, "tied": True}).attach(base, 0)
    table = attached.own["tied"][1]
    key, value = attached.virtual(battery.batch(False)).prefix[1]
    weight, bias = base.model.transformer.h[1].attn.c_attn.weight, base.model.transformer.h[1].attn.c_attn.bias
    _, k, v = (table @ weight + bias).chunk(3, -1)
    assert torch.allclose(key.reshape(4, -1), k, atol=1e-6)
    assert torch.allclose(value.reshape(4, -1), v, atol=1e-6)
