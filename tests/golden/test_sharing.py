"""Shared prefixes: the trie computes fewer tokens, and every state and gradient stays what it was."""

import numpy as np
import pytest
import torch
from tests.golden.test_layouts import base_of, virtual_of

from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.engine.sharing import share
from luthier.models.forward import hidden, token_nll

SYSTEM, EXAMPLE = 20, 18


def rows():
    """Five rows after one instruction, three of them after one example more, one that shares nothing, a copy."""
    source = np.random.default_rng(0)
    system, example = source.integers(3, 64, SYSTEM), source.integers(3, 64, EXAMPLE)
    bodies = [source.integers(3, 64, n) for n in (4, 9, 4, 6, 9)]
    made = [np.concatenate([system, body]) for body in bodies[:2]]
    made += [np.concatenate([system, example, body]) for body in bodies[2:]]
    made += [source.integers(3, 64, 12), made[3].copy()]
    order = source.permutation(len(made))
    return [Row(f"r{i}", made[i].astype(np.int32), made[i].astype(np.int32)) for i in order]


def test_the_trie_of_known_rows():
    batch = from_rows(rows())
    shared = share(batch)
    whole = len(batch.input_ids)
    longest = SYSTEM + EXAMPLE + 6 - 1  # the copy shares all but its last token: 5 own ones are too few for a node
    assert len(shared.input_ids) == whole - 5 * SYSTEM - 3 * EXAMPLE
    assert longest > SYSTEM + EXAMPLE
    assert torch.equal(shared.input_ids[shared.back], batch.input_ids)
    assert torch.equal(shared.position_ids[shared.back], batch.position_ids)
    assert sorted(parent >= 0 for parent in shared.parents) == [False] * 2 + [True] * 7
    assert share(from_rows(rows()[:1])) is None
    assert share(batch, least=1000) is None


def test_positions_that_differ_are_not_shared():
    """Positions that skip (PoSE) make other tokens of the same words."""
    row = np.arange(3, 43).astype(np.int32)
    batch = from_rows([Row("a", row, row), Row("b", row, row)])
    assert len(share(batch).input_ids) == 41
    batch.position_ids[60:] += 100
    assert len(share(batch).input_ids) == 60
    batch.position_ids[45:] += 100
    assert share(batch) is None


@pytest.mark.parametrize("virtual", ["none", "prefix", "prompt"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "gpt2", "opt"])
def test_losses_and_all_gradients_are_those_of_rows_alone(kind, virtual):
    base = base_of(kind)
    batch, seen = from_rows(rows()), []
    given = virtual_of(base, virtual)
    base.model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))

    def measured(on):
        base.shared_prefix = on
        base.model.zero_grad()
        losses = token_nll(base, hidden(base, batch, given, layout="flat"), batch.targets)
        (losses * torch.linspace(0.5, 1.5, len(losses))).sum().backward()
        return losses.detach(), {
            name: w.grad.clone() for name, w in base.model.named_parameters() if w.grad is not None
        }

    alone, plain = measured(False)
    together, gradients = measured(True)
    assert seen == [len(batch.input_ids), len(batch.input_ids) if virtual == "prompt" else len(share(batch).input_ids)]
    assert torch.allclose(alone, together, atol=1e-5)
    for name, wanted in plain.items():
        assert torch.allclose(gradients[name], wanted, atol=1e-5 * float(wanted.abs().max()) + 1e-8), name


def test_recomputed_layers_see_their_own_trie():
    base = base_of("llama")
    base.model.train()
    base.shared_prefix = True
    batch = from_rows(rows())

    def gradient(checkpointing):
        base.model.zero_grad()
        states = hidden(base, batch, None, layout="flat", checkpointing=checkpointing)
        token_nll(base, states, batch.targets).sum().backward()
        return {name: w.grad.clone() for name, w in base.model.named_parameters()}

    plain, again = gradient(False), gradient(True)
    for name, wanted in plain.items():
        assert torch.allclose(again[name], wanted, atol=1e-6 * float(wanted.abs().max()) + 1e-9), name


def test_encoders_share_nothing():
    base = base_of("bert")
    base.shared_prefix = True
    batch = from_rows(rows())
    on = hidden(base, batch, None, layout="flat")
    base.shared_prefix = False
    assert torch.equal(on, hidden(base, batch, None, layout="flat"))
