"""Which layout is used: the flat one where it is exact, on a GPU by one kernel or by a call a length, else padding."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.adapted import AdaptedModel
from luthier.core.types import Row
from luthier.engine import attention, flex
from luthier.methods import METHODS
from luthier.models import anatomy, selfcheck
from luthier.models.base import Base
from luthier.tasks import TASKS


@pytest.fixture
def parts():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    base = Base(model, None, anatomy.of(model), "decoder", None, {}, (2,), 1)
    attached = METHODS.parse({"name": "lora", "r": 4}).attach(base, 0)
    source = np.random.default_rng(0)
    ids = [source.integers(3, 64, n).astype(np.int32) for n in (12, 20, 7)]
    yield AdaptedModel(base, attached, None, TASKS.parse("instruct"), {"name": "lora"}), [Row("", i, i) for i in ids]
    attention.use_fused(True)


def choose(parts):
    told = []
    layout = selfcheck.choose_layout(*parts, lambda kind, **facts: told.append((kind, facts)))
    assert len(told) == 1
    return layout, *told[0]


def test_exact_and_told(parts):
    layout, kind, facts = choose(parts)
    assert (layout, kind, parts[0].layout) == ("flat", "selfcheck", "padded")
    assert facts["difference"] < facts["tolerance"] == 1e-4


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_gpu_goes_on_with_a_call_a_length(parts, monkeypatch, fault):
    def kernel(query, *rest):
        if fault == "raises":
            raise RuntimeError("no kernel image")
        return torch.zeros_like(query).transpose(0, 1)

    monkeypatch.setattr(flex, "fits", lambda *args: True)
    monkeypatch.setattr(flex, "attend", kernel)
    layout, _, facts = choose(parts)
    assert layout == "padded"
    assert ("no kernel image" if fault == "raises" else "differ") in facts["what"]
    monkeypatch.setattr(selfcheck, "_on_gpu", lambda adapted: True)
    layout, _, facts = choose(parts)
    assert (layout, facts["difference"] < 1e-5) == ("flat", True)


def test_beyond_rounding_is_padding(parts, monkeypatch):
    monkeypatch.setattr(selfcheck, "allowed", lambda adapted: 0.0)
    layout, kind, facts = choose(parts)
    assert (layout, kind) == ("padded", "warning")
    assert "flat ones differ by" in facts["what"]
