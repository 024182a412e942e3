"""Compiled layers: the same loss and gradients, nothing compiled twice, the model's own code outside of training."""

import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.adapted import AdaptedModel
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.methods import METHODS
from luthier.models import anatomy, compiled
from luthier.models.base import Base
from luthier.tasks import TASKS
from luthier.train.settings import TrainSettings

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
ON = TrainSettings(compile="on")


def adapted_of(kind="llama", dropout=0.1, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZE, **more}))
    model.eval().requires_grad_(False)
    base = Base(model, None, anatomy.of(model), "decoder", None, {}, (2,), 1)
    method = {"name": "lora", "r": 4, "dropout": dropout, "targets": ["q_proj"]}
    attached = METHODS.parse(method).attach(base, 0)
    return AdaptedModel(base, attached, None, TASKS.parse("instruct"), method, layout="flat")


def rows_of(*lengths):
    source = np.random.default_rng(0)
    ids = [source.integers(3, 64, n).astype(np.int32) for n in lengths]
    return [Row(str(i), part, part) for i, part in enumerate(ids)]


def gradient(adapted, batch):
    torch.manual_seed(3)
    loss = adapted.loss(batch).total
    loss.backward()
    weights = adapted.parameters_by_name().values()
    made = torch.cat([weight.grad.flatten() for weight in weights])
    for weight in weights:
        weight.grad = None
    return float(loss.detach()), made


@pytest.fixture
def compiler(monkeypatch):
    """A stand-in that multiplies what a layer gives, and counts: tracing for real takes a minute."""
    told = {"calls": 0, "factor": 1.0, "error": None}

    def compile_layer(exact, **options):
        assert options["dynamic"]
        assert options["options"] == {"fallback_random": True}

        def forward(*given, **named):
            if told["error"]:
                raise told["error"]
            told["calls"] += 1
            return exact(*given, **named) * told["factor"]

        return forward

    monkeypatch.setattr(torch, "compile", compile_layer)
    return told


def trains_the_same_and_compiles_once(adapted):
    batches = [from_rows(rows_of(*lengths)) for lengths in ((9, 20, 31), (12, 5), (40, 11, 7, 16))]
    adapted.train()
    wanted = [gradient(adapted, batch) for batch in batches]
    told = []
    rows = rows_of(11, 18, 7)
    assert compiled.install_checked(adapted, rows, ON, 0, lambda name, **facts: told.append((name, facts)))
    assert told[0][0] == "compiled"
    assert told[0][1]["difference"] < 1e-5
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    adapted.train()
    for batch, (loss, exact) in zip(batches, wanted, strict=True):
        made, grads = gradient(adapted, batch)
        assert made == pytest.approx(loss, rel=1e-6)
        assert float((grads - exact).norm() / exact.norm()) < 1e-5
    assert counters["stats"]["unique_graphs"] == graphs
    compiled.remove(adapted.base)
    assert gradient(adapted, batches[0])[0] == wanted[0][0]
    assert not any("forward" in vars(layer) for _, layer in adapted.base.anatomy.layers)


def test_training_passes_only(compiler):
    adapted, batch = adapted_of(), from_rows(rows_of(9, 20))
    adapted.eval()
    wanted = adapted.token_nll(batch)
    assert compiled.install_checked(adapted, rows_of(9, 20), ON, 0)
    calls = compiler["calls"]
    assert calls == 2
    with torch.no_grad():
        assert torch.equal(adapted.token_nll(batch), wanted)
    assert torch.equal(adapted.token_nll(batch), wanted)
    assert compiler["calls"] == calls
    gradient(adapted.train(), batch)
    assert compiler["calls"] == 2 * calls
    compiled.remove(adapted.base)
    gradient(adapted, batch)
    assert compiler["calls"] == 2 * calls


def test_what_it_does_not_go_with(compiler, monkeypatch):
    adapted, told = adapted_of(), []

    def why(settings=ON, tokens=0):
        told.clear()
        assert not compiled.install_checked(
            adapted, rows_of(9, 8), settings, tokens, lambda name, **facts: told.append(facts["what"])
        )
        assert not any("forward" in vars(layer) for _, layer in adapted.base.anatomy.layers)
        return told[0] if told else ""

    assert why(TrainSettings(compile="off"), 1e12) == ""
    assert why(TrainSettings(compile="auto"), 1000) == ""
    assert "int8_base" in why(TrainSettings(compile="on", int8_base=True))
    assert "checkpointing" in why(TrainSettings(compile="on", activation_checkpointing=True))
    compiler["factor"] = 1.01
    assert "differ" in why()
    compiler["error"] = RuntimeError("no machine code")
    assert "no machine code" in why()
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert "no C++ compiler" in why()
    adapted.layout = "padded"
    assert "padded" in why(TrainSettings(compile="auto"), 1e9)


def test_auto_compiles_where_it_pays():
    base = adapted_of().base
    least = compiled.PAYS / (2 * 32)
    assert compiled.pays(base, least + 1)
    assert not compiled.pays(base, least - 1)


@pytest.mark.parametrize("shared", [False, True])
def test_token_budgets_change_nothing(shared):
    """What a CUDA graph needs: few token counts. The padding is a segment of its own, and its states are cut off."""
    adapted = adapted_of(dropout=0.0)
    rows = rows_of(30, 31, 25)
    for row in rows[1:]:
        row.input_ids[:20] = rows[0].input_ids[:20]
    adapted.base.shared_prefix = shared
    batch = from_rows(rows)
    adapted.train()
    loss, exact = gradient(adapted, batch)
    seen = []
    adapted.base.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    adapted.base.token_step = 16
    made, grads = gradient(adapted, batch)
    assert seen == [(1, 48 if shared else 96)]
    assert made == pytest.approx(loss, rel=1e-6)
    assert float((grads - exact).norm() / exact.norm()) < 1e-5
    with torch.no_grad():
        adapted.eval().token_nll(batch)
    assert seen[-1] == (1, 46 if shared else 86)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_machine_code():
    torch._dynamo.reset()
    counters.clear()
    trains_the_same_and_compiles_once(adapted_of())
