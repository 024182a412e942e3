"""Attention of segments against scores written out in float64: output and gradients, whatever goes in blocks."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch

from luthier.engine import attention
from luthier.engine.attention import Segments, segment_attention

HEADS, SHARED, WIDTH = 4, 2, 8
BLOCK = attention.BLOCK
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 57, 3 * BLOCK)


def parts(tokens: int, ahead: int) -> list[torch.Tensor]:
    """Query, key, value, and a prefix's key and value, in float64."""
    source = torch.Generator().manual_seed(tokens + ahead)
    sizes = [(HEADS, tokens), (SHARED, tokens), (SHARED, tokens)]
    flat = [torch.randn(*size, WIDTH, generator=source, dtype=torch.float64) for size in sizes]
    extra = [torch.randn(ahead, SHARED, WIDTH, generator=source, dtype=torch.float64) for _ in range(2)]
    return flat + extra


def written_out(given: list[torch.Tensor], lengths: tuple[int, ...], options: dict[str, Any]) -> torch.Tensor:
    """One segment after the other, every score in a matrix."""
    query, key, value, *prefix = given
    causal, window, cap = options.get("causal", True), options.get("window"), options.get("softcap")
    ahead, made = len(prefix[0]), []
    for start, stop in pairwise([0, *accumulate(lengths)]):
        q = query[:, start:stop]
        pairs = zip((key, value), prefix, strict=True)
        k, v = (torch.cat([extra.transpose(0, 1), one[:, start:stop]], 1) for one, extra in pairs)
        k, v = (one.repeat_interleave(HEADS // SHARED, 0) for one in (k, v))
        scores = q @ k.transpose(1, 2) * WIDTH**-0.5
        scores = torch.tanh(scores / cap) * cap if cap else scores
        far = torch.arange(ahead, ahead + stop - start)[:, None] - torch.arange(ahead + stop - start)
        hidden = far < 0 if causal else torch.zeros_like(far, dtype=torch.bool)
        hidden = hidden | (far.abs() >= window) if window else hidden
        made.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(made)


@pytest.mark.parametrize("ahead", [0, 20, 150])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 50},
        {"window": BLOCK + 40},
        {"softcap": 3.0},
        {"softcap": 3.0, "window": 60},
        {"causal": False},
        {"causal": False, "window": 50},
    ],
    ids=str,
)
def test_every_block_sees_what_its_queries_see(options, ahead):
    lengths = LENGTHS
    given = parts(sum(lengths), ahead)
    wanted_of = [one.clone().requires_grad_() for one in given]
    made_of = [one.clone().requires_grad_() for one in given]
    wanted = written_out(wanted_of, lengths, options)
    prefix = (made_of[3], made_of[4]) if ahead else None
    segments = Segments.of([0, *accumulate(lengths)])
    made = segment_attention(*made_of[:3], segments, prefix=prefix, **options)
    assert torch.allclose(made, wanted, atol=1e-6)  # a soft cap's softmax is in float32
    weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (wanted * weights).sum().backward()
    (made * weights).sum().backward()
    for one, other in list(zip(made_of, wanted_of, strict=True))[: 5 if ahead else 3]:
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


def calls_of(monkeypatch, length: int, **options: Any) -> list[tuple[int, int]]:
    """(queries, keys) of every call of the kernel."""
    seen = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(q, k, *rest, **more):
        seen.append((q.shape[2], k.shape[2]))
        return kernel(q, k, *rest, **more)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", noted)
    query, key, value, *prefix = (one.float() for one in parts(length, 16))
    extra = {"prefix": tuple(prefix)} if options.pop("ahead", False) else {}
    segment_attention(query, key, value, Segments.of([0, length]), **options, **extra)
    return seen


def test_no_block_takes_keys_that_none_of_its_queries_sees(monkeypatch):
    assert calls_of(monkeypatch, 3 * BLOCK) == [(BLOCK, BLOCK), (BLOCK, 2 * BLOCK), (BLOCK, 3 * BLOCK)]
    assert calls_of(monkeypatch, 2 * BLOCK, ahead=True) == [(BLOCK, BLOCK + 16), (BLOCK, 2 * BLOCK + 16)]
    wide = calls_of(monkeypatch, 20 * BLOCK, window=BLOCK)
    assert wide[0] == (BLOCK, BLOCK)
    assert set(wide[1:]) == {(BLOCK, 2 * BLOCK - 1)}


def test_long_plain_rows_and_encoders_are_one_call(monkeypatch):
    long = attention.SKIPS_ITSELF + 1
    assert calls_of(monkeypatch, long) == [(long, long)]
    assert calls_of(monkeypatch, 3 * BLOCK, causal=False) == [(3 * BLOCK, 3 * BLOCK)]
