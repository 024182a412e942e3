"""Attention over slots is attention of each request over its own keys, wherever they lie and whoever stands beside."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from luthier.serve import attention
from luthier.serve.attention import Pool, Span, Step

HEADS, KV, DIM, SLOTS = 6, 2, 8, 7
STEPS = {
    "one": [(3, 9, 1)],
    "side by side": [(0, 4, 1), (1, 9, 1), (2, 6, 1)],
    "other order": [(2, 4, 1), (0, 9, 1), (1, 6, 1)],
    "scattered": [(6, 4, 1), (0, 9, 1), (3, 6, 1), (2, 9, 1)],
    "one long": [(6, 4, 1), (0, 60, 1), (3, 6, 1), (2, 5, 1)],
    "with prompts": [(6, 4, 1), (0, 60, 1), (3, 0, 5), (2, 7, 6)],
    "prompts": [(3, 0, 5), (2, 7, 6)],
}


def by_definition(query, keys, values, window):
    """query [heads, R, d] of the last R of the positions of keys [kv_heads, L, d]."""
    rows, length = query.shape[1], keys.shape[1]
    own, places = torch.arange(length - rows, length)[:, None], torch.arange(length)[None]
    seen = (places <= own) & (places > own - (window or length))
    keys, values = keys.repeat_interleave(HEADS // KV, 0), values.repeat_interleave(HEADS // KV, 0)
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=0.3).transpose(0, 1)


@pytest.mark.parametrize("call", [0, 1 << 14], ids=["two groups", "one group"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("spans", STEPS.values(), ids=STEPS)
@torch.inference_mode()
def test_each_request_sees_its_own_keys(spans, window, call, monkeypatch):
    monkeypatch.setattr(attention, "CALL", call)
    torch.manual_seed(0)
    pool = Pool((1, SLOTS, KV, DIM), torch.float32, torch.device("cpu"))
    pool.reserve(70)
    for store in (pool.keys, pool.values):
        store[0].normal_()
    before = [pool.keys[0].clone(), pool.values[0].clone()]
    rows = sum(count for _, _, count in spans)
    # As linear layers give them: of a product of several layers side by side, heads after tokens.
    made = torch.randn(1, rows, (HEADS + 2 * KV) * DIM).split([HEADS * DIM, KV * DIM, KV * DIM], -1)
    query, key, value = (part.view(1, rows, -1, DIM).transpose(1, 2) for part in made)
    step = Step.of(pool, [Span(*span) for span in spans])
    attention.begin(step)
    try:
        found, _ = attention.slot_attention(
            SimpleNamespace(layer_idx=0), query, key, value, None, scaling=0.3, sliding_window=window
        )
    finally:
        attention.end()
    assert found.shape == (1, rows, HEADS, DIM)
    start = 0
    for slot, cached, count in spans:
        stop = start + count
        keys = torch.cat([before[0][slot, :, :cached], key[0, :, start:stop]], 1)
        values = torch.cat([before[1][slot, :, :cached], value[0, :, start:stop]], 1)
        torch.testing.assert_close(pool.keys[0][slot, :, : cached + count], keys, atol=0, rtol=0)
        torch.testing.assert_close(pool.values[0][slot, :, : cached + count], values, atol=0, rtol=0)
        expected = by_definition(query[0, :, start:stop], keys, values, window)
        torch.testing.assert_close(found[0, start:stop], expected, atol=1e-6, rtol=1e-5)
        start = stop
    untouched = sorted(set(range(SLOTS)) - {slot for slot, _, _ in spans})
    assert torch.equal(pool.keys[0][untouched], before[0][untouched])


def test_short_requests_do_not_pay_for_long_ones():
    assert attention._cut([20] * 15 + [1500], 128) == 20
    assert attention._cut([20, 30, 25, 28], 128) == 0  # a second call costs more
    assert attention._cut([100] * 16, 128) == 0
    assert attention._cut(list(range(10, 330, 20)), 128) == 150  # half and half
    assert attention._cut([7], 1) == 0
