"""The GPU form of segment attention, its logic on a CPU: a stand-in for the kernel that follows its documentation."""

import pytest
import torch

from luthier.engine import varlen
from luthier.engine.attention import Segments, segment_attention

HEADS, KV, D = 4, 2, 8


def kernel(q, k, v, to_q, to_k, longest_q, longest_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """torch.nn.attention.varlen.varlen_attn: the last query is lined up with the last key."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert to_q.dtype == to_k.dtype == torch.int32
    parts, (left, right) = [], window_size
    for index in range(len(to_q) - 1):
        one = slice(int(to_q[index]), int(to_q[index + 1]))
        two = slice(int(to_k[index]), int(to_k[index + 1]))
        size, seen = one.stop - one.start, two.stop - two.start
        assert size <= longest_q
        assert seen <= longest_k
        distance = torch.arange(seen - size, seen)[:, None] - torch.arange(seen)
        mask = torch.ones_like(distance, dtype=torch.bool)
        mask &= distance <= left if left >= 0 else mask
        mask &= distance >= -right if right >= 0 else mask
        grouped = [part[two].repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1) for part in (k, v)]
        made = torch.nn.functional.scaled_dot_product_attention(
            q[one].transpose(0, 1), *grouped, attn_mask=mask, scale=scale
        )
        parts.append(made.transpose(0, 1))
    return torch.cat(parts)


TRIE = (-1, 0, 0, 2, -1)


@pytest.mark.parametrize("prefix", ["none", "one", "each"])
@pytest.mark.parametrize(
    ("causal", "window", "parents"),
    [(True, None, ()), (True, 4, ()), (True, None, TRIE), (True, 4, TRIE), (False, None, ()), (False, 3, ())],
)
def test_it_is_the_other_form(parents, prefix, causal, window, monkeypatch):
    torch.manual_seed(0)
    bounds = (0, 6, 9, 16, 18, 23)
    segments = Segments.of(bounds, parents)
    given = [torch.randn(heads, bounds[-1], D, requires_grad=True) for heads in (HEADS, KV, KV)]
    shape = {"one": (3, KV, D), "each": (5, 3, KV, D)}.get(prefix)
    extra = None if shape is None else (torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True))
    options = {"causal": causal, "scale": 0.3, "window": window, "prefix": extra}
    incoming, leaves = torch.randn(bounds[-1], HEADS, D), [*given, *(extra or ())]
    wanted = segment_attention(*given, segments, **options)
    gradients = torch.autograd.grad(wanted, leaves, incoming)
    monkeypatch.setattr(varlen, "fits", lambda *args: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    made = segment_attention(*given, segments, **options)
    assert torch.allclose(made, wanted, atol=1e-5)
    for one, other in zip(torch.autograd.grad(made, leaves, incoming), gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_stand_in_has_the_kernels_signature():
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    real, mine = (inspect.signature(each).parameters for each in (varlen_attn, kernel))
    assert len(list(real)) >= 7
    assert {name for name, one in mine.items() if one.kind is one.KEYWORD_ONLY} <= set(real)


def test_a_cpu_and_float32_never_take_it():
    assert not varlen.fits(torch.randn(2, 3, 8), None, 0.0)
    assert not varlen.fits(torch.randn(2, 3, 8, dtype=torch.bfloat16), None, 0.0)
