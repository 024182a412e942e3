"""Flat ≡ padded ≡ one by one, for every family of decoders, with prefix and prompt; loss ≡ torch's cross entropy."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.engine.loss import chunked_nll
from luthier.models import anatomy
from luthier.models.base import Base
from luthier.models.forward import Virtual, hidden, token_nll

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA = {**SMALL, "num_key_value_heads": 2}
KINDS = {
    "llama": GQA,
    "qwen3": {**GQA, "head_dim": 8},
    "mistral": {**GQA, "sliding_window": 5},
    "gemma2": {**GQA, "head_dim": 8, "sliding_window": 5},
    "gpt_neox": SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bert": SMALL,
    "roberta": SMALL,
}


def base_of(kind):
    config = AutoConfig.for_model(kind, vocab_size=64, bos_token_id=1, eos_token_id=2, **KINDS[kind])
    torch.manual_seed(0)
    loader = AutoModelForMaskedLM if kind in ("bert", "roberta") else AutoModelForCausalLM
    model = loader.from_config(config).eval()
    found = anatomy.of(model)
    return Base(model=model, tokenizer=None, anatomy=found, kind=found.kind, path=None, fingerprint={},
                stop_ids=(2,), pad_id=config.pad_token_id or 0)  # fmt: skip


def rows(lengths=(5, 9, 9, 3, 14)):
    source = np.random.default_rng(0)
    made = []
    for index, length in enumerate(lengths):
        ids = source.integers(3, 64, length).astype(np.int32)
        made.append(Row(f"r{index}", ids, np.where(np.arange(length) < 2, -100, ids)))
    return made


def virtual_of(base, kind):
    facts, source = base.anatomy, torch.Generator().manual_seed(1)
    if kind == "prefix":
        shape = (3, facts.num_kv_heads, facts.head_dim)
        pairs = [tuple(torch.randn(shape, generator=source) for _ in range(2)) for _ in facts.layers]
        return Virtual(prefix=pairs, length=3)
    return Virtual(prompt=torch.randn(3, facts.hidden_size, generator=source), length=3) if kind == "prompt" else None


@pytest.mark.parametrize("virtual", ["none", "prefix", "prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_agree(kind, virtual):
    base = base_of(kind)
    if virtual != "none" and base.kind == "encoder":
        pytest.skip("encoders take virtual tokens through their methods' own tests")
    extra = virtual_of(base, virtual)
    with torch.no_grad():
        alone = torch.cat([hidden(base, from_rows([row]), extra) for row in rows()])
        for layout in ("padded", "flat"):
            together = hidden(base, from_rows(rows()), extra, layout=layout)
            assert torch.allclose(alone, together, atol=2e-5), layout


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_token_losses_are_the_models_own(kind):
    base = base_of(kind)
    batch = from_rows(rows())
    losses = token_nll(base, hidden(base, batch, layout="flat"), batch.targets)
    logits = torch.cat([base.model(input_ids=torch.tensor(r.input_ids).long()[None]).logits[0] for r in rows()])
    wanted = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none", ignore_index=-100)
    assert torch.allclose(losses, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.5},
        {"softcap": 3.0},
        {"label_smoothing": 0.1},
        {"z_loss": 1e-2},
        {"softcap": 3.0, "scale": 2.0, "label_smoothing": 0.1, "z_loss": 1e-2},
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_loss_and_gradients_equal_float64_autograd(options, bias, monkeypatch):
    from luthier.engine import loss as module

    monkeypatch.setattr(module, "CHUNK_BYTES", 16 * 4 * 50)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=bias)
    states = torch.randn(61, 8, requires_grad=True)
    targets = torch.randint(0, 50, (61,))
    weights = torch.rand(61)
    (chunked_nll(states, targets, head, **options)[0] * weights).sum().backward()
    made = [states.grad, *[p.grad for p in head.parameters()]]
    exact, wide = head.double(), states.detach().double().requires_grad_()
    wide_head = torch.nn.Linear(8, 50, bias=bias).double()
    wide_head.load_state_dict(exact.state_dict())
    logits = wide_head(wide) * options.get("scale", 1.0)
    if options.get("softcap"):
        logits = torch.tanh(logits / options["softcap"]) * options["softcap"]
    total = torch.logsumexp(logits, -1)
    losses = total - logits.gather(1, targets[:, None])[:, 0]
    smoothing = options.get("label_smoothing", 0.0)
    losses = (1 - smoothing) * losses + smoothing * (total - logits.mean(-1)) + options.get("z_loss", 0.0) * total**2
    (losses * weights.double()).sum().backward()
    for one, other in zip(made, [wide.grad, *[p.grad for p in wide_head.parameters()]], strict=True):
        assert torch.allclose(one.double(), other, atol=1e-5)


def test_c7_gradients_of_flat_equal_one_by_one():
    base = base_of("llama")
    batch = from_rows(rows())

    def gradient(batches, layout):
        base.model.zero_grad()
        for one in batches:
            token_nll(base, hidden(base, one, layout=layout), one.targets).sum().backward()
        return {name: weight.grad.clone() for name, weight in base.model.named_parameters()}

    alone = gradient([from_rows([row]) for row in rows()], "padded")
    flat = gradient([batch], "flat")
    for name, wanted in alone.items():
        assert torch.allclose(flat[name], wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-7), name


@pytest.mark.parametrize("virtual", ["none", "prompt", "prefix"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_recomputed_layers_give_the_same_gradients(kind, virtual):
    """Activation checkpointing recomputes a flat layer in the backward, with the segments of its own forward."""
    base = base_of(kind)
    batch, other = from_rows(rows()), from_rows(rows((4, 7)))
    base.model.train()

    def gradient(checkpointing):
        base.model.zero_grad()
        given = virtual_of(base, virtual)
        options = {"layout": "flat", "checkpointing": checkpointing}
        losses = token_nll(base, hidden(base, batch, given, **options), batch.targets).sum()
        with torch.no_grad():
            hidden(base, other, given, layout="flat")  # another forward stands between this one and its backward
        losses.backward()
        return {name: w.grad.clone() for name, w in base.model.named_parameters() if w.grad is not None}

    for module in base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain, again = gradient(False), gradient(True)
    assert plain.keys() == again.keys()
    for name, wanted in plain.items():
        assert torch.allclose(again[name], wanted, atol=1e-6 * float(wanted.abs().max()) + 1e-9), name
