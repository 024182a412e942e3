"""Shifted sparse attention: equal to the dense masked form, causal, on while training only."""

import numpy as np
import pytest
import torch
from tests.unit.context.test_stages import TRAIN, recipe_of, tell, text  # noqa: F401

from luthier.core.errors import RecipeError
from luthier.core.types import Row
from luthier.engine.attention import Segments
from luthier.engine.batch import from_rows
from luthier.engine.shifted import Shifted, shifted_attention
from luthier.pipeline import story

LENGTHS, GROUP = (23, 8, 3, 1), 8


def dense(query, key, value, bounds, group):
    """Every head with its own mask: same row, not later, same group."""
    heads, tokens = query.shape[:2]
    repeat = heads // key.shape[0]
    key, value = key.repeat_interleave(repeat, 0), value.repeat_interleave(repeat, 0)
    row = torch.repeat_interleave(torch.arange(len(bounds) - 1), torch.tensor(bounds).diff())
    place = torch.arange(tokens) - torch.tensor(bounds)[row]
    later = torch.arange(tokens)[:, None] >= torch.arange(tokens)[None]
    made = []
    for head in range(heads):
        own = place // group if head < heads // 2 else (place + group - group // 2) // group
        seen = later & (row[:, None] == row[None]) & (own[:, None] == own[None])
        scores = (query[head] @ key[head].T * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
        made.append(torch.softmax(scores, -1) @ value[head])
    return torch.stack(made, 1)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_it_equals_the_dense_form_with_a_mask_for_each_head(heads, shared):
    torch.manual_seed(0)
    bounds = [0, *np.cumsum(LENGTHS).tolist()]
    query = torch.randn(heads, bounds[-1], 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(shared, bounds[-1], 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    made = shifted_attention(query, key, value, Shifted.of(Segments.of(bounds), GROUP), causal=True)
    wanted = dense(query, key, value, bounds, GROUP)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-12)
    found = torch.autograd.grad(made.square().sum(), (query, key, value))
    for one, other in zip(found, torch.autograd.grad(wanted.square().sum(), (query, key, value)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_it_changes_the_training_and_not_the_evaluation(folders):
    """A short row lies in one group of the first half, but the second half cuts it: the loss differs in training."""
    from luthier.models import forward
    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    base = load_base(ModelSettings(path=str(folders("llama")), device="cpu"), task="language_model", seed=0)
    batch = from_rows([Row("r", np.arange(5, 29), np.arange(5, 29))])

    def states(group, training):
        base.shifted_attention = group
        base.model.train(training)
        with torch.no_grad():
            return forward.hidden(base, batch, None, layout="flat")

    whole = states(None, True)
    assert torch.equal(states(8, False), whole)
    assert not torch.allclose(states(8, True), whole, atol=1e-3)
    torch.testing.assert_close(states(8, True)[:4], whole[:4])  # half a group sees all that there is
    torch.testing.assert_close(states(48, True), whole)


def test_a_stage_trains_with_it_and_misfits_are_refused(folders, text, tmp_path):  # noqa: F811
    train = {**TRAIN, "shifted_attention": 32, "activation_checkpointing": True}
    whole = {"train": str(text), "template": "plain", "max_length": 96, "split": {"validation": 2, "test": 2}}
    given = {"train": train, "context": {"name": "yarn", "length": 96}, "data": whole}
    tell(recipe_of(folders("llama"), text, **given), tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    for also, said in (
        ({"method": {"name": "prefix", "length": 2}, "data": {**whole, "max_length": 80}}, "virtual tokens"),
        ({"train": {**train, "engine": "plain"}}, "flat layout"),
        ({"train": {**train, "shared_prefix": True}}, "shared prefixes"),
    ):
        with pytest.raises(RecipeError, match=said):
            story.run(recipe_of(folders("llama"), text, **{**given, **also}), tmp_path / said[:3])
