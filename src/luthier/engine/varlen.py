"""Segment attention on a GPU: one FlashAttention call for all segments, through torch's own `varlen_attn`.

    q       [T, heads, d]       cu_q [S+1]     the segments themselves
    k, v    [U, kv_heads, d]    cu_k [S+1]     what each segment sees: virtual tokens, its path in the trie, itself

The kernel lines the last query up with the last key, so what stands before a segment is seen by all of it. It takes
half precision, no soft cap and no dropout; everything else stays with `engine.attention`. Pure torch.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from luthier.engine.attention import Segments

LARGEST_HEAD = 256


def fits(query: Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether the kernel takes this call."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    plain = softcap is None and dropout == 0.0
    return query.is_cuda and half and plain and query.shape[-1] % 8 == 0 and query.shape[-1] <= LARGEST_HEAD


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    causal: bool,
    scale: float | None,
    window: int | None,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """As `engine.attention.segment_attention`, for what `fits`: [heads, T, d] → [T, heads, d]."""
    from torch.nn.attention.varlen import varlen_attn

    length = 0 if prefix is None else prefix[0].shape[-3]
    each = prefix is not None and prefix[0].dim() == 4
    places, to_q, to_k, longest_q, longest_k = _layout(segments, length, each, query.device)
    q, k, v = (tensor.transpose(0, 1).contiguous() for tensor in (query, key, value))
    if places is not None:
        extra = (None, None) if prefix is None else prefix
        k, v = (_gathered(part, more, places) for part, more in zip((k, v), extra, strict=True))
    left = -1 if window is None else window - 1
    sides = (left, 0) if causal else (left, left)
    grouped = q.shape[1] != k.shape[1]
    made = varlen_attn(q, k, v, to_q, to_k, longest_q, longest_k, scale=scale, window_size=sides, enable_gqa=grouped)
    assert isinstance(made, Tensor)
    return made


def _gathered(part: Tensor, extra: Tensor | None, places: Tensor) -> Tensor:
    """[U, kv_heads, d] of all keys or values, the virtual ones behind the tokens' own before they are put in order."""
    whole = part if extra is None else torch.cat([part, extra.reshape(-1, *part.shape[1:]).to(part.dtype)])
    return whole[places]


@lru_cache(maxsize=8)
def _layout(
    segments: Segments, virtual: int, each: bool, device: torch.device
) -> tuple[Tensor | None, Tensor, Tensor, int, int]:
    """(places of all keys or None where they are in order, cu_q, cu_k, longest query, longest key); once a batch."""
    edges = segments.bounds
    seen = []
    for index, (start, stop) in enumerate(pairwise(edges)):
        first = edges[-1] + (index * virtual if each else 0)
        path = segments.paths[index] if segments.paths else ()
        before = [np.arange(edges[node], edges[node + 1]) for node in path]
        seen.append(np.concatenate([np.arange(first, first + virtual), *before, np.arange(start, stop)]))
    sizes = [len(part) for part in seen]
    gather = virtual > 0 or any(segments.paths)
    places = torch.from_numpy(np.concatenate(seen)).to(device) if gather else None
    to_q = torch.tensor(edges, dtype=torch.int32, device=device)
    to_k = torch.tensor([0, *np.cumsum(sizes).tolist()], dtype=torch.int32, device=device)
    return places, to_q, to_k, max(segments.lengths), max(sizes)
