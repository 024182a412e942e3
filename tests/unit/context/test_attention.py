"""C8: where attention looks, by head and distance, against the full matrix; and through a real model."""

import numpy as np
import pytest
import torch

from luthier.adapted import attach
from luthier.data.templates import TEMPLATES
from luthier.engine.attention_shape import attention_shape
from luthier.models import attention
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS


def full(query, key, far, ahead, window=None):
    """The same numbers from the whole T×T matrix."""
    heads, length, width = query.shape
    key = key.repeat_interleave(heads // key.shape[0], 0)
    distance = torch.arange(length)[:, None] - torch.arange(-ahead, length)[None]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    weights = (query @ key.transpose(1, 2) / width**0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    visible = seen.sum(-1)
    entropy = torch.where(weights > 0, -weights * weights.log(), 0).sum(-1)[:, visible > 1]
    beyond = (distance > far) & seen
    beyond[:, :ahead] = False
    real = torch.cat([torch.zeros(ahead), torch.ones(length)])
    reach = beyond.any(-1)
    return {
        "entropy": (entropy / visible[visible > 1].log()).mean(-1),
        "distance": (weights * distance * real).sum(-1).mean(-1),
        "sink": weights[:, :, ahead : ahead + 4].sum(-1).mean(-1),
        "far": (weights * beyond).sum(-1)[:, reach].mean(-1),
        "prefix": weights[:, :, :ahead].sum(-1).mean(-1),
    }


@pytest.mark.parametrize(("ahead", "window"), [(0, None), (5, None), (0, 20)])
def test_c8_chunks_give_what_the_whole_matrix_gives(ahead, window):
    torch.manual_seed(0)
    query, key = torch.randn(4, 70, 8), torch.randn(2, 70 + ahead, 8)
    far = 10 if window else 30
    found = attention_shape(query, key, far=far, ahead=ahead, window=window, chunk=16)
    for name, expected in full(query, key, far, ahead, window).items():
        assert torch.allclose(found[name], expected, atol=1e-5), name


def test_c8_even_attention_and_attention_to_the_token_before():
    length, far = 64, 16
    even = attention_shape(torch.zeros(1, length, 4), torch.zeros(1, length, 4), far=far)
    assert even["entropy"].item() == pytest.approx(1, abs=1e-5)
    assert even["far"].item() == pytest.approx(even["even"].item(), abs=1e-6)
    places = torch.eye(length)[None]
    one_back = attention_shape(places.roll(-1, 2) * 50, places, far=far, scale=1.0)  # the query at t looks for t - 1
    assert one_back["far"].item() < 0.01
    assert one_back["distance"].item() == pytest.approx(63 / 64, abs=1e-3)
    assert attention_shape(torch.zeros(1, 8, 4), torch.zeros(1, 8, 4), far=8)["far"].isnan()
    slides = attention_shape(torch.zeros(1, length, 4), torch.zeros(1, length, 4), far=far, window=8)
    assert slides["far"].item() == slides["even"].item() == 0


@pytest.mark.parametrize("method", ["lora", {"name": "prefix", "length": 6}])
def test_c8_of_a_model_equals_its_eager_weights(folders, method):
    base = load_base(ModelSettings(path=str(folders("llama"))))
    task, template = TASKS.parse("language_model"), TEMPLATES.parse("plain")
    adapted = attach(base, method, task, template, seed=0).eval()
    ids = np.arange(48) * 7 % 90 + 3
    found = attention.inspect(adapted, [ids], far=16)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert adapted.layout == "padded"
    nothing_far = attention.inspect(adapted, [ids], far=47)
    assert nothing_far["mean"]["far"] is None
    assert nothing_far["layers"][0]["far"] == [None, None]
    assert attention.inspect(adapted, [ids, ids[:10]], far=16)["mean"]["far"] == found["mean"]["far"]
    base.model.set_attn_implementation("eager")
    ahead = adapted.attached.virtual_tokens
    from luthier.core.types import Row
    from luthier.engine.batch import from_rows
    from luthier.models import forward

    batch = from_rows([Row("r", ids, ids)])
    virtual = adapted.virtual(batch)
    options = {"past_key_values": forward.cache_of(virtual, 1, torch.float32)} if ahead else {}
    with torch.no_grad():
        out = base.model(
            input_ids=batch.input_ids[None], position_ids=batch.position_ids[None] + ahead,
            attention_mask=torch.ones(1, ahead + 48), output_attentions=True, **options,
        )  # fmt: skip
    for layer, weights in zip(found["layers"], out.attentions, strict=True):
        assert layer["prefix"] == pytest.approx(weights[0, :, :, :ahead].sum(-1).mean(-1).tolist(), abs=2e-4)
        sink = weights[0, :, :, ahead : ahead + 4].sum(-1).mean(-1)
        assert layer["sink"] == pytest.approx(sink.tolist(), abs=2e-4)
