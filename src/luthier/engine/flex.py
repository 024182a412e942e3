"""Segment attention on a GPU where `varlen` does not fit (float32, soft caps, odd head sizes): torch's flex_attention.

One kernel for all segments, whose blocks without anything to see are skipped:

    seen(q, k) = segment of k is that of q, or before it in the trie, or virtual
                 and place of k ≤ place of q             (causal; places count from the start of what q sees)
                 and place of q - place of k < window

Needs torch.compile, and so Triton. **Unmeasured**: no GPU has run it; the masks and the call are tested on a CPU.
Pure torch.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from luthier.engine.attention import Segments


def fits(query: Tensor, dropout: float) -> bool:
    """Whether this call can go through flex_attention."""
    return query.is_cuda and dropout == 0.0 and find_spec("triton") is not None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    causal: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """As `engine.attention.segment_attention`, for what `fits`: [heads, T, d] → [T, heads, d]."""
    length, each = 0, False
    if prefix is not None:
        length, each = prefix[0].shape[-3], prefix[0].dim() == 4
        key, value = (
            torch.cat([part, extra.reshape(-1, *extra.shape[-2:]).transpose(0, 1).to(part.dtype)], dim=1)
            for part, extra in zip((key, value), prefix, strict=True)
        )
    mask = block_mask(segments, length, each, causal, window, query.device)
    call = _kernel(query.is_cuda)
    grouped = query.shape[0] != key.shape[0]
    made = call(
        query[None], key[None], value[None], score_mod=_cap(softcap), block_mask=mask, scale=scale, enable_gqa=grouped
    )
    assert isinstance(made, Tensor)
    return made[0].transpose(0, 1)


@lru_cache
def _kernel(on_gpu: bool) -> Any:
    """Compiled once for all lengths; uncompiled, it writes the scores out (a CPU, for tests)."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if on_gpu else flex_attention


@lru_cache
def _cap(softcap: float | None) -> Any:
    if softcap is None:
        return None

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    return capped


@lru_cache(maxsize=16)
def block_mask(
    segments: Segments, virtual: int, each: bool, causal: bool, window: int | None, device: torch.device
) -> Any:
    """flex_attention's mask of T queries over T keys and the virtual ones behind them; made once a batch."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens, count = segments.bounds[-1], len(segments.lengths)
    owner, place, seen = (part.to(device) for part in _places(segments, virtual, each))

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        shown = seen[owner[q], owner[k]]
        distance = place[q] - place[k]
        if causal:
            shown = shown & (distance >= 0)
        if window is not None:
            shown = shown & ((distance if causal else distance.abs()) < window)
        return shown

    keys = tokens + virtual * (count if each else min(1, virtual))
    return create_block_mask(visible, None, None, tokens, keys, device=device)


def _places(segments: Segments, virtual: int, each: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(owner [keys], place [keys], seen [owners, owners]): segments first, then the virtual tokens' owners."""
    count = len(segments.lengths)
    owners = count + (count if each else 1) * (virtual > 0)
    seen = torch.zeros(owners, owners, dtype=torch.bool)
    owner, place = [], []
    for index, (start, stop) in enumerate(pairwise(segments.bounds)):
        path = segments.paths[index] if segments.paths else ()
        ahead = virtual + sum(segments.lengths[node] for node in path)
        seen[index, [index, *path]] = True
        if virtual:
            seen[index, count + (index if each else 0)] = True
        owner.append(torch.full((stop - start,), index))
        place.append(torch.arange(ahead, ahead + stop - start))
    for extra in range(count, owners):
        owner.append(torch.full((virtual,), extra))
        place.append(torch.arange(virtual))
    return torch.cat(owner), torch.cat(place), seen
