"""train.trunk_cache: the same bits for the same batches, fewer layers computed, refused where it does not apply."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.adapted import AdaptedModel
from luthier.core.types import Row
from luthier.data.batching import BatchPlan
from luthier.engine.batch import from_rows
from luthier.methods import METHODS
from luthier.models import anatomy, trunk
from luthier.models.base import Base
from luthier.tasks import TASKS
from luthier.train import loop
from luthier.train.settings import TrainSettings

SHAPES = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "word_embed_proj_dim": 32, "dropout": 0.0},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gemma2": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
               "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5},
}  # fmt: skip


class Words(list):
    """As much of a tokenizer as a prefix's start asks for."""

    all_special_ids = (0, 1, 2)

    def __init__(self):
        super().__init__(range(128))


def adapted_of(kind, method, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=128, **{**SHAPES[kind], **changes})
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    found = anatomy.of(model)
    base = Base(model, Words(), found, "decoder", None, {}, (2,), 1)
    return AdaptedModel(base, METHODS.parse(method).attach(base, 0), None, TASKS.parse("instruct"), {}, layout="flat")


def rows():
    source = np.random.default_rng(0)
    made = [source.integers(3, 128, n).astype(np.int32) for n in (20, 31, 9, 14, 25, 17)]
    return [Row(str(i), ids, ids) for i, ids in enumerate(made)]


def losses_of(kind, method, file, shuffle):
    adapted, told = adapted_of(kind, method), []
    if file is not None:
        assert trunk.install(adapted, rows(), file, lambda kind, **facts: told.append(facts))
    plan = BatchPlan(rows(), batch_size=2, shuffle=shuffle)
    settings = TrainSettings(epochs=3, batch_size=2, early_stop=None, save_every="never", evaluate_every="never")
    seen = []
    loop.fit(adapted, plan, adapted.loss, settings=settings, lr=1e-2, total_steps=9,
             emit=lambda kind, **facts: seen.append(facts["loss"]) if kind == "train" else None)  # fmt: skip
    return seen, adapted, told


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("method", [{"name": "lora", "r": 4, "layers": [-1]}, {"name": "bottleneck", "layers": [2, 3]}])
def test_same_batches_give_the_same_bits(kind, method, tmp_path):
    plain, _, _ = losses_of(kind, method, None, shuffle=False)
    cached, adapted, told = losses_of(kind, method, tmp_path / "trunk.bin", shuffle=False)
    assert cached == plain
    tokens = sum(len(row.input_ids) for row in rows())
    assert adapted.base.trunk.reused == 2 * tokens
    assert told[0]["layers"] == (3 if method["name"] == "lora" else 2)
    assert (tmp_path / "trunk.bin").stat().st_size == tokens * 32 * 4


def test_other_batches_agree_to_rounding(tmp_path):
    method = {"name": "lora", "r": 4, "layers": [-1]}
    plain, _, _ = losses_of("llama", method, None, shuffle=True)
    cached, adapted, _ = losses_of("llama", method, tmp_path / "trunk.bin", shuffle=True)
    assert cached == pytest.approx(plain, rel=1e-5)
    assert adapted.base.trunk.reused > 0
    adapted.eval()
    before = adapted.base.trunk.reused
    adapted.token_nll(next(iter(BatchPlan(rows(), batch_size=2, shuffle=False).groups(0)))[0])
    assert adapted.base.trunk.reused == before
    trunk.remove(adapted, tmp_path / "trunk.bin")
    assert not (tmp_path / "trunk.bin").exists()


@pytest.mark.parametrize(
    ("method", "changes", "why"),
    [
        ({"name": "lora", "r": 4}, {}, "lowest layer"),
        ({"name": "prefix", "length": 3}, {}, "virtual"),
        ({"name": "lora", "r": 4, "layers": [-1]}, {"attention_dropout": 0.5}, "dropout"),
    ],
)
def test_where_it_does_not_apply_it_says_why(method, changes, why, tmp_path):
    adapted, told = adapted_of("llama", method, **changes), []
    assert not trunk.install(adapted, rows(), tmp_path / "t", lambda kind, **facts: told.append(facts["what"]))
    assert why in told[0]
    assert adapted.base.trunk is None
    assert not (tmp_path / "t").exists()


def gradients_of(kind, checkpointing, layers):
    """Gradients of a LoRA on these layers, and how often each layer was computed."""
    adapted = adapted_of(kind, {"name": "lora", "r": 4, "layers": layers})
    with torch.no_grad():
        for name, weight in adapted.parameters_by_name().items():
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    adapted.loss_options = {"checkpointing": checkpointing}
    calls = [0] * len(adapted.base.anatomy.layers)

    def count(index):
        def note(module, args):
            calls[index] += 1

        return note

    for index, (_, part) in enumerate(adapted.base.anatomy.attentions):  # hooks of whole layers are not called again
        part.register_forward_pre_hook(count(index))
    adapted.train()
    reached = []
    table = adapted.base.model.get_input_embeddings()
    table.register_forward_hook(lambda module, args, made: reached.append(made.requires_grad))
    adapted.loss(from_rows(rows())).total.backward()
    return {name: weight.grad for name, weight in adapted.parameters_by_name().items()}, calls, reached


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recomputing_stops_at_the_lowest_adapter(kind):
    """Frozen layers below it are computed once, and no gradient goes through them; the gradients are the same."""
    plain, once, _ = gradients_of(kind, False, [2, 3])
    again, calls, reached = gradients_of(kind, True, [2, 3])
    assert (once, calls, reached) == ([1, 1, 1, 1], [1, 1, 2, 2], [False])
    assert plain.keys() == again.keys()
    for name, wanted in plain.items():
        assert torch.allclose(again[name], wanted, atol=1e-6 * float(wanted.abs().max()) + 1e-9), name


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_kept_states_go_with_recomputed_layers(kind, tmp_path):
    """The second pass reads the states, recomputes the layers above in the backward, and has the same gradients."""
    adapted = adapted_of(kind, {"name": "lora", "r": 4, "layers": [-1]})
    adapted.loss_options = {"checkpointing": True}
    told = []
    assert trunk.install(adapted, rows(), tmp_path / "trunk.bin", lambda kind, **facts: told.append(facts))
    assert told == [{"layers": 3, "of": 4, "disk_mb": pytest.approx(0.0, abs=0.1)}]
    adapted.train()
    found = []
    for _ in range(2):
        for weight in adapted.parameters_by_name().values():
            weight.grad = None
        adapted.loss(from_rows(rows())).total.backward()
        found.append({name: weight.grad for name, weight in adapted.parameters_by_name().items()})
    assert adapted.base.trunk.reused == sum(len(row.input_ids) for row in rows())
    for name, wanted in found[0].items():
        assert torch.equal(found[1][name], wanted), name
