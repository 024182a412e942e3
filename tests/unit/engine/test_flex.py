"""flex_attention over segments: the real masks and, forward, the real function; gradients through a written-out one."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from luthier.engine import attention, flex
from luthier.engine.attention import Segments, segment_attention

HEADS, KV, D = 4, 2, 8
BOUNDS = (0, 6, 9, 16, 18, 23)
TRIE = (-1, 0, 0, 2, -1)
CASES = [
    (True, None, ()), (True, 4, ()), (True, None, TRIE), (True, 4, TRIE), (False, None, ()), (False, 3, ()),
]  # fmt: skip


def kernel(q, k, v, *, score_mod, block_mask, scale, enable_gqa):
    """What flex_attention documents, with the scores written out: it has no backward on a CPU."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert block_mask.shape[-2:] == (q.shape[2], k.shape[2])
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = scores if score_mod is None else score_mod(scores, None, None, None, None)
    seen = create_mask(block_mask.mask_mod, 1, 1, q.shape[2], k.shape[2], device="cpu")
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ v


def given(parents, prefix):
    torch.manual_seed(0)
    parts = [torch.randn(heads, BOUNDS[-1], D, requires_grad=True) for heads in (HEADS, KV, KV)]
    shape = {"one": (3, KV, D), "each": (5, 3, KV, D)}.get(prefix)
    extra = None if shape is None else (torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True))
    return parts, extra, Segments.of(BOUNDS, parents)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("prefix", ["none", "one", "each"])
@pytest.mark.parametrize(("causal", "window", "parents"), CASES)
def test_it_is_the_other_form(parents, prefix, causal, window, softcap, monkeypatch):
    parts, extra, segments = given(parents, prefix)
    options = {"causal": causal, "scale": 0.3, "window": window, "softcap": softcap, "prefix": extra}
    incoming, leaves = torch.randn(BOUNDS[-1], HEADS, D), [*parts, *(extra or ())]
    wanted = segment_attention(*parts, segments, **options)
    gradients = torch.autograd.grad(wanted, leaves, incoming)
    monkeypatch.setattr(flex, "fits", lambda *args: True)
    monkeypatch.setattr(flex, "_kernel", lambda on_gpu: kernel)
    made = segment_attention(*parts, segments, **options)
    assert torch.allclose(made, wanted, atol=1e-5)
    for one, other in zip(torch.autograd.grad(made, leaves, incoming), gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_torchs_own_function_takes_the_call(monkeypatch):
    parts, extra, segments = given(TRIE, "one")
    parts, extra = [part.detach() for part in parts], tuple(part.detach() for part in extra)
    options = {"scale": 0.3, "window": 9, "softcap": 2.0, "prefix": extra}
    with torch.no_grad():
        wanted = segment_attention(*parts, segments, **options)
        monkeypatch.setattr(flex, "fits", lambda *args: True)
        assert torch.allclose(segment_attention(*parts, segments, **options), wanted, atol=1e-5)


def test_a_cpu_and_dropout_never_take_it():
    assert not flex.fits(torch.randn(2, 3, 8), 0.0)


def test_it_can_be_switched_off(monkeypatch):
    parts, _, segments = given((), "none")
    monkeypatch.setattr(flex, "fits", lambda *args: True)
    monkeypatch.setattr(flex, "attend", lambda *args: "fused")
    assert segment_attention(*parts, segments) == "fused"
    attention.use_fused(False)
    try:
        assert isinstance(segment_attention(*parts, segments), torch.Tensor)
    finally:
        attention.use_fused(True)
