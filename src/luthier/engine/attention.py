"""Attention over isolated segments of one flat row: no padding, no T×T mask, no leak between rows.

    q, k, v   [heads, T, d]      segments of the row by `bounds`
    out       [T, heads, d]

Segments of equal length are computed together. Grouped-query heads are shared, not copied. A prefix's keys and
values are put before each segment's own. Pure torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from luthier.engine import flex, varlen

BLOCK = 128
"""Queries of one call on a CPU. Its kernel skips unseen keys by 512 at a time, and none where it is given a mask."""
SKIPS_ITSELF = 1024
"""Tokens above which a plain causal row is not cut into blocks: the kernel skips enough by itself."""
_FUSED = [True]


def use_fused(on: bool) -> None:
    """Whether a GPU takes one kernel for all segments, or one call for each length as a CPU does."""
    _FUSED[0] = on


@dataclass(frozen=True)
class Segments:
    """Boundaries of the rows in a flat row, and the groups of equal lengths that are computed together."""

    bounds: tuple[int, ...]
    groups: tuple[tuple[int, tuple[int, ...]], ...]
    """(length, indices of the segments of that length and with as many tokens before them)."""
    paths: tuple[tuple[int, ...], ...] = ()
    """The segments that each one sees before itself, outermost first; empty where all stand alone."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each segment."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    @classmethod
    def of(cls, bounds: Sequence[int], parents: Sequence[int] = ()) -> Segments:
        """Group segments by length, longest first. `parents[n]` is the segment before segment n, or -1."""
        edges = tuple(int(edge) for edge in bounds)
        paths: list[tuple[int, ...]] = []
        for parent in parents:
            paths.append((*paths[parent], parent) if parent >= 0 else ())
        found: dict[tuple[int, int], list[int]] = {}
        for index, (start, stop) in enumerate(pairwise(edges)):
            ahead = sum(edges[node + 1] - edges[node] for node in paths[index]) if paths else 0
            found.setdefault((stop - start, ahead), []).append(index)
        groups = tuple((length, tuple(members)) for (length, _), members in sorted(found.items(), reverse=True))
        return cls(edges, groups, tuple(paths))


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """query [heads, T, d], key/value [kv_heads, T, d] → [T, heads, d].

    `prefix` is (K, V), each [P, kv_heads, d] or [segments, P, kv_heads, d], at positions 0 … P-1 of each segment.
    `window` is a sliding window. A segment with a path sees that path before itself (causal only).
    Source of the grouping: one SDPA call a length beats one call a segment where many rows are short.
    """
    if _FUSED[0] and varlen.fits(query, softcap, dropout):
        return varlen.attend(query, key, value, segments, causal, scale, window, prefix)
    if _FUSED[0] and flex.fits(query, dropout):
        return flex.attend(query, key, value, segments, causal, scale, window, softcap, prefix)
    parts: list[Tensor] = []
    order: list[int] = []
    # split, not one slice a segment: the backward of a split is one `cat`, that of a slice a tensor of zeros each
    pieces = [tensor.split(segments.lengths, dim=1) for tensor in (query, key, value)]
    for length, members in segments.groups:
        q = torch.stack([pieces[0][index] for index in members])
        k, v = (torch.stack([_seen(piece, index, segments.paths) for index in members]) for piece in pieces[1:])
        if prefix is not None:
            k, v = (_with_prefix(part, extra, members) for part, extra in zip((k, v), prefix, strict=True))
        ahead = k.shape[2] - length
        made = _attend(q, k, v, length, ahead, causal, scale, window, softcap, dropout)
        parts += made.transpose(1, 2).unbind(0)
        order += members
    places = [0] * len(order)
    for place, index in enumerate(order):
        places[index] = place
    return torch.cat([parts[place] for place in places])


def _seen(pieces: Sequence[Tensor], index: int, paths: tuple[tuple[int, ...], ...]) -> Tensor:
    """[kv_heads, tokens before and own, d] of one segment."""
    if not paths or not paths[index]:
        return pieces[index]
    return torch.cat([pieces[node] for node in (*paths[index], index)], dim=1)


def _with_prefix(part: Tensor, extra: Tensor, members: tuple[int, ...]) -> Tensor:
    rows = extra[list(members)] if extra.dim() == 4 else extra.expand(len(members), *extra.shape)
    return torch.cat([rows.transpose(1, 2).to(part.dtype), part], dim=2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: int,
    ahead: int,
    causal: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """[n, heads, length, d] queries over [n, kv_heads, ahead + length, d]."""
    total = ahead + length
    near = window if window is not None and window < total else None
    rows = BLOCK if _pays(length, causal, near is not None, ahead > 0 or softcap is not None, q.is_cuda) else length
    made: list[Tensor] = []
    for start, part in zip(range(0, length, rows), q.split(rows, dim=2), strict=True):
        own = range(ahead + start, ahead + min(start + rows, length))
        first = max(0, own.start - near + 1) if near else 0
        last = own.stop if causal else min(total, own.stop + near - 1) if near else total
        seen = range(first, last)
        mask = _mask(own, seen, causal, near, q.device) if near or (causal and own.start > first) else None
        keys, values = (one[:, :, first:last] if len(seen) < total else one for one in (k, v))
        if softcap is not None:
            made.append(_capped(part, keys, values, mask, causal, scale, softcap))
            continue
        made.append(
            functional.scaled_dot_product_attention(
                part,
                keys,
                values,
                attn_mask=mask,
                is_causal=causal and mask is None and len(own) > 1,
                scale=scale,
                dropout_p=dropout,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat(made, dim=2) if len(made) > 1 else made[0]


def _pays(length: int, causal: bool, windowed: bool, masked: bool, on_gpu: bool) -> bool:
    """Whether a row's queries go in blocks, each over the keys that it sees."""
    if on_gpu or length <= BLOCK:
        return False
    return windowed or (causal and (masked or length <= SKIPS_ITSELF))


def _mask(own: range, seen: range, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] at these positions; a prefix stands at positions 0 …, so a sliding window passes it by."""
    queries, keys = (torch.arange(one.start, one.stop, device=device) for one in (own, seen))
    distance = queries[:, None] - keys[None]
    visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible &= (distance < window) if causal else (distance.abs() < window)
    return visible


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, softcap: float
) -> Tensor:
    """Gemma-2's soft cap has no fused kernel on CPU: scores are written out."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(-1, -2)) * (scale if scale is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None and causal:
        mask = _mask(range(q.shape[2]), range(k.shape[2]), True, None, q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores.float(), dim=-1).to(q.dtype) @ v
