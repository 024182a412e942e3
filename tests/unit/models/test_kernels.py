"""Liger's kernels on a CPU: what is found, how it is called, and that a wrong kernel is refused.

The stand-ins follow the documentation of `liger_kernel.transformers.functional` and count their calls.
"""

import sys
import types

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.adapted import AdaptedModel
from luthier.core.types import Row
from luthier.methods import METHODS
from luthier.models import anatomy, kernels
from luthier.models.base import Base
from luthier.tasks import TASKS

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def adapted_of(kind, dtype=torch.float32, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZE, **more})).to(dtype)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    model.eval().requires_grad_(False)
    base = Base(model, None, anatomy.of(model), "decoder", None, {}, (2,), 1)
    attached = METHODS.parse({"name": "lora", "r": 4, "targets": "all-linear"}).attach(base, 0)
    adapted = AdaptedModel(base, attached, None, TASKS.parse("instruct"), {"name": "lora"}, layout="flat")
    source = np.random.default_rng(0)
    ids = [source.integers(3, 64, n).astype(np.int32) for n in (12, 20, 7)]
    return adapted, [Row(str(i), part, part) for i, part in enumerate(ids)]


@pytest.fixture
def liger(monkeypatch):
    """{"rms_norm": calls, "swiglu": calls}; `factor` makes the norm wrong."""
    calls = {"rms_norm": 0, "swiglu": 0, "factor": 1.0}

    def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
        assert not in_place
        calls["rms_norm"] += 1
        return kernels.rms_norm(X, W, eps, offset, casting_mode) * calls["factor"]

    def liger_swiglu(a, b):
        calls["swiglu"] += 1
        return torch.nn.functional.silu(a) * b

    module = types.ModuleType("liger_kernel.transformers.functional")
    module.liger_rms_norm, module.liger_swiglu = liger_rms_norm, liger_swiglu
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "norms", "swiglus"), [("llama", 5, 2), ("qwen3", 9, 2), ("gemma", 5, 0)])
def test_found_by_what_they_compute(kind, norms, swiglus, dtype, liger):
    adapted, rows = adapted_of(kind, dtype)
    told = []
    assert kernels.install_checked(adapted, rows, lambda name, **facts: told.append((name, facts)))
    assert (told[0][0], told[0][1]["norms"], told[0][1]["feed_forwards"]) == ("kernels", norms, swiglus)
    assert told[0][1]["difference"] <= (1e-6 if dtype == torch.float32 else 3e-2)
    assert (liger["rms_norm"], liger["swiglu"]) == (norms, swiglus)  # each once a forward


def test_gemma_adds_one_to_its_weight():
    norm = adapted_of("gemma", torch.bfloat16)[0].base.anatomy.backbone.norm
    assert kernels.norm_form(norm)[1:] == (1.0, "gemma")
    norm = adapted_of("llama", torch.bfloat16)[0].base.anatomy.backbone.norm
    assert kernels.norm_form(norm)[1:] == (0.0, "llama")
    assert kernels.norm_form(torch.nn.LayerNorm(32)) is None


def test_a_wrong_kernel_is_refused(liger):
    adapted, rows = adapted_of("llama")
    liger["factor"], told = 1.01, []
    assert not kernels.install_checked(adapted, rows, lambda kind, **facts: told.append(facts["what"]))
    assert "differ" in told[0]
    assert not any("forward" in vars(module) for module in adapted.base.model.modules())


def test_nothing_to_do_for_other_norms(liger):
    adapted, rows = adapted_of("gpt2", n_embd=32, n_head=4, n_layer=2)
    assert not kernels.install_checked(adapted, rows)
    assert liger["rms_norm"] == liger["swiglu"] == 0


def test_a_cpu_never_takes_them(liger):
    assert not kernels.available(adapted_of("llama")[0].base)


def test_without_liger_it_is_told():
    adapted, rows = adapted_of("llama")
    told = []
    assert not kernels.install_checked(adapted, rows, lambda kind, **facts: told.append(facts["what"]))
    assert "ModuleNotFoundError" in told[0]
