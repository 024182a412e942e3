"""train.int8_base: training passes only, measured before use, refused where the gradient turns."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.adapted import AdaptedModel
from luthier.core.errors import ModelError
from luthier.core.types import Row
from luthier.engine import fp8
from luthier.engine import int8 as products
from luthier.engine.batch import from_rows
from luthier.methods import METHODS
from luthier.models import anatomy, int8
from luthier.models.base import Base
from luthier.tasks import TASKS

pytestmark = pytest.mark.skipif(not products.available(), reason="torch without oneDNN's int8")


def adapted_and_rows():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    found = anatomy.of(model)
    base = Base(model, None, found, "decoder", None, {}, (2,), 1)
    attached = METHODS.parse({"name": "lora", "r": 4}).attach(base, 0)
    adapted = AdaptedModel(base, attached, None, TASKS.parse("instruct"), {"name": "lora"}, layout="flat")
    source = np.random.default_rng(0)
    ids = [source.integers(3, 128, n).astype(np.int32) for n in (20, 31, 9)]
    return adapted, [Row(str(i), part, part) for i, part in enumerate(ids)]


def test_training_is_int8_and_evaluation_is_exact():
    adapted, rows = adapted_and_rows()
    batch = from_rows(rows)
    before = adapted.eval().token_nll(batch)
    adapted.train()
    exact = float(adapted.loss(batch).total.detach())
    told = []
    cosine = int8.install_checked(adapted, rows, lambda kind, **facts: told.append((kind, facts)))
    assert 0.99 <= cosine < 1.0
    assert told == [("int8", {"layers": 14, "exact_forwards": 0, "cosine": cosine, "least": 0.99, "form": "int8"})]
    adapted.train()
    lossy = float(adapted.loss(batch).total.detach())
    assert 0 < abs(lossy - exact) / exact < 0.01
    assert torch.equal(adapted.eval().token_nll(batch), before)
    int8.remove(adapted.base)
    adapted.train()
    assert float(adapted.loss(batch).total.detach()) == exact


def test_a_layer_that_few_large_activations_make_coarse_keeps_its_exact_forward():
    """The last layer of a gated MLP: its small inputs round to zero, and that is most of what int8 would lose."""
    adapted, rows = adapted_and_rows()
    layers = adapted.base.model.model.layers
    with torch.no_grad():
        layers[0].mlp.up_proj.weight[5] *= 40.0
    told = []
    int8.install_checked(adapted, rows, lambda kind, **facts: told.append(facts))
    assert told[0]["exact_forwards"] == 1
    states = torch.randn(7, 128)
    for layer, kept in zip(layers, (True, False), strict=True):
        exact = torch.nn.functional.linear(states, layer.mlp.down_proj.weight)
        assert torch.equal(layer.mlp.down_proj.train()(states), exact) is kept


def test_forwards_stay_exact_until_the_gradient_points_the_right_way(monkeypatch):
    """Weights of 19 levels: what they spoil in the forward is given up, a sixth of the layers at a time."""
    adapted, rows = adapted_and_rows()
    fine = products.quantized

    def coarse(weight):
        rounded, scales = fine(weight)
        return ((rounded / 13).round() * 13).clamp(-117, 117).to(torch.int8), scales

    monkeypatch.setattr(products, "quantized", coarse)
    monkeypatch.setattr(products.Int8Weight, "most_off", 9.0)
    adapted.train()
    wanted = int8._gradient(adapted, rows)
    int8.install(int8.pack(adapted.base))
    assert int8._cosine(wanted, int8._gradient(adapted, rows)) < int8.COSINE
    int8.remove(adapted.base)
    told = []
    cosine = int8.install_checked(adapted, rows, lambda kind, **facts: told.append(facts))
    assert cosine >= int8.COSINE
    assert told[0]["exact_forwards"] in range(1, 14)


def test_a_gpu_with_fp8_takes_the_same_way(monkeypatch):
    """The device is the one thing that a CPU cannot show: the weights, the check and the loss are fp8's own."""
    adapted, rows = adapted_and_rows()
    batch = from_rows(rows)
    before = adapted.eval().token_nll(batch)
    adapted.train()
    exact = float(adapted.loss(batch).total.detach())
    monkeypatch.setattr(int8, "packing", lambda base: fp8.Fp8Weight)
    told = []
    cosine = int8.install_checked(adapted, rows, lambda kind, **facts: told.append(facts))
    assert 0.99 <= cosine < 1.0
    assert (told[0]["form"], told[0]["layers"]) == ("fp8", 14)
    lossy = float(adapted.train().loss(batch).total.detach())
    assert 0 < abs(lossy - exact) / exact < 0.02
    assert torch.equal(adapted.eval().token_nll(batch), before)


def test_a_coarser_fp8_is_refused(monkeypatch):
    adapted, rows = adapted_and_rows()
    monkeypatch.setattr(int8, "packing", lambda base: fp8.Fp8Weight)
    monkeypatch.setattr(fp8, "_rounded", lambda rows: (rows.sign().to(fp8.FORMAT), torch.ones(len(rows), 1)))
    with pytest.raises(ModelError, match="cosine"):
        int8.install_checked(adapted, rows)
    assert not any("forward" in vars(module) for module in adapted.base.model.modules())


def test_the_device_chooses(monkeypatch):
    adapted, _ = adapted_and_rows()
    assert int8.packing(adapted.base) is products.Int8Weight
    adapted.base.model.to("meta")
    with pytest.raises(ModelError, match="float32 base on the CPU"):
        int8.packing(adapted.base)

    class Weight:
        device = torch.device("cuda:0")

    monkeypatch.setattr(adapted.base.model, "parameters", lambda: iter([Weight()]))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert int8.packing(adapted.base) is fp8.Fp8Weight
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ModelError, match="no fp8"):
        int8.packing(adapted.base)


def test_a_turned_gradient_is_refused(monkeypatch):
    adapted, rows = adapted_and_rows()
    monkeypatch.setattr(products, "TOP", 1)
    with pytest.raises(ModelError, match="cosine"):
        int8.install_checked(adapted, rows)
    assert not any("forward" in vars(module) for module in adapted.base.model.modules())


def test_trained_weights_stay_exact():
    adapted, _ = adapted_and_rows()
    adapted.base.model.requires_grad_(True)
    with pytest.raises(ModelError, match="no frozen"):
        int8.pack(adapted.base)
