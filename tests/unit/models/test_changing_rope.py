"""`dynamic` and `longrope`: a row's states hang on the row alone, whatever is batched with it or came before."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.models import anatomy, changing_rope, forward
from luthier.models.base import Base
from luthier.models.forward import Virtual

WITHIN = 16
ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "rope_theta": 10000.0, "long_factor": [4.0] * 4,
                 "short_factor": [1.0] * 4, "original_max_position_embeddings": WITHIN},
}  # fmt: skip


def base_of(kind):
    torch.manual_seed(0)
    whole = WITHIN if kind == "dynamic" else 4 * WITHIN
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=whole, rope_parameters=ROPES[kind])  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return Base(model, None, anatomy.of(model), "decoder", None, {}, (2,), 0)


def rows_of(*lengths):
    source = np.random.default_rng(0)
    ids = [source.integers(3, 64, length).astype(np.int32) for length in lengths]
    return [Row(f"r{index}", one, one) for index, one in enumerate(ids)]


def alone(kind, row, virtual=None):
    """What a model that has seen nothing else makes of it."""
    with torch.no_grad():
        return forward.hidden(base_of(kind), from_rows([row]), virtual)


@pytest.mark.parametrize("layout", ["padded", "flat"])
@pytest.mark.parametrize("kind", ROPES)
def test_a_row_is_the_same_in_every_batch_and_after_every_row(kind, layout):
    base, rows = base_of(kind), rows_of(30, 7, 50, 12, 20, 16)
    wanted = torch.cat([alone(kind, row) for row in rows])
    with torch.no_grad():
        assert torch.allclose(forward.hidden(base, from_rows(rows), layout=layout), wanted, atol=2e-5)
        for row in (rows[2], rows[4], rows[5]):  # 50 positions, then 20: not with the frequencies of 50
            made = forward.hidden(base, from_rows([row]), layout=layout)
            assert torch.allclose(made, alone(kind, row), atol=2e-5)
        # the batch as transformers would take it: far from it
        apart = forward._in_layout(base, from_rows(rows), None, layout) - wanted
        assert float(apart.abs().max()) > 0.05


@pytest.mark.parametrize("kind", ROPES)
def test_virtual_tokens_of_each_row_go_with_it(kind):
    base, rows = base_of(kind), rows_of(15, 9, 22)
    prompt = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = forward.hidden(base, from_rows(rows), Virtual(prompt=prompt, length=2), layout="flat")
    each = [alone(kind, row, Virtual(prompt=prompt[index], length=2)) for index, row in enumerate(rows)]
    assert torch.allclose(made, torch.cat(each), atol=2e-5)


def test_rows_within_the_window_stay_one_batch(monkeypatch):
    base, calls = base_of("dynamic"), []
    own = forward._in_layout
    monkeypatch.setattr(forward, "_in_layout", lambda *args: calls.append(len(args[1].row_ids)) or own(*args))
    forward.hidden(base, from_rows(rows_of(16, 7, 12)), layout="flat")
    assert calls == [3]
    forward.hidden(base, from_rows(rows_of(17, 7, 30, 12)), layout="flat")
    assert calls == [3, 2, 1, 1]
    assert changing_rope.constant_within(base.model.config) == WITHIN
    assert changing_rope.constant_within(LlamaConfig()) is None


def test_rows_that_go_alone_are_told():
    from types import SimpleNamespace

    from luthier.pipeline import learn

    def told(kind, *lengths):
        base = base_of(kind)
        adapted = SimpleNamespace(base=base, attached=SimpleNamespace(virtual_tokens=2))
        said = []
        learn._tell_row_by_row(
            adapted, SimpleNamespace(rows={"train": rows_of(*lengths)}), lambda kind, **facts: said.append(facts)
        )
        return said

    assert told("dynamic", 14, 3) == []
    (warning,) = told("longrope", 15, 3, 40)
    assert warning["what"].startswith("2 of 3 training rows go alone")
