"""Attention over slots: one flat row of tokens from many requests, keys and values in a pool.

    tokens  [ a | b | c | d d d d d d | e e e ]      a, b, c decode one token each; d, e are prompt chunks
    pool    [slots, kv_heads, length, head_dim] a layer, grown by doubling

Registered with transformers' attention interface under `luthier_slots`; the mask interface returns None, since
this function does its own masking. A model whose attention asks for something it does not know is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.errors import ModelError

NAME = "luthier_slots"


@dataclass(frozen=True)
class Span:
    """`rows` consecutive tokens of the step that belong to `slot`, after `cached` earlier entries."""

    slot: int
    cached: int
    rows: int


class Pool:
    """Keys and values of all slots: [layers][slots, kv_heads, length, head_dim]."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, limit: int | None = None
    ):
        self.shape = shape  # layers, slots, kv_heads, head_dim
        self.dtype, self.device, self.limit = dtype, device, limit
        self.length = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.reserve(64)

    def reserve(self, length: int) -> None:
        """Make room for `length` entries a slot, by doubling; what is there stays."""
        if length <= self.length:
            return
        if self.limit is not None and length > self.limit:
            raise ModelError(f"{length} positions are more than the {self.limit} that the memory for keys allows")
        layers, slots, heads, dim = self.shape
        size = max(64, self.length)
        while size < length:
            size *= 2
        size = min(size, max(64, self.limit or size))
        for store in (self.keys, self.values):
            fresh = [torch.zeros(slots, heads, size, dim, dtype=self.dtype, device=self.device) for _ in range(layers)]
            for old, new in zip(store, fresh, strict=False):
                new[:, :, : self.length] = old
            store[:] = fresh
        self.length = size

    def clear(self, slot: int) -> None:
        """Forget what a slot holds."""
        for store in (*self.keys, *self.values):
            store[slot] = 0

    def bytes_per_slot(self) -> int:
        """Memory of one slot at the present length."""
        layers, _, heads, dim = self.shape
        return 2 * layers * heads * dim * self.length * self.keys[0].element_size()


@dataclass(frozen=True)
class Group:
    """Single tokens that are computed together: rows of the step, where their slots lie, and their lengths."""

    rows: slice | Tensor
    slots: slice | Tensor
    """A slice where they lie side by side: then no key is copied."""
    lengths: Tensor
    longest: int
    even: bool
    """All as long as the longest, so that nothing is masked."""


@dataclass
class Step:
    """What the attention function must know of the forward that is running."""

    pool: Pool
    spans: Sequence[Span]
    decode: int = 0
    """How many leading spans are single tokens."""
    slots: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    groups: Sequence[Group] = ()

    @classmethod
    def of(cls, pool: Pool, spans: Sequence[Span]) -> Step:
        """Count the leading single-token spans and lay out their slots and lengths."""
        count = 0
        while count < len(spans) and spans[count].rows == 1:
            count += 1
        slots, lengths = [span.slot for span in spans[:count]], [span.cached + 1 for span in spans[:count]]
        device = pool.device
        places, sizes = (torch.tensor(values, dtype=torch.int64, device=device) for values in (slots, lengths))
        return cls(pool, spans, count, places, sizes, _groups(slots, lengths, device))


def _groups(slots: list[int], lengths: list[int], device: torch.device) -> list[Group]:
    """At most two groups by length: short requests must not pay for one long one."""
    if not slots:
        return []
    short = [length * 4 <= max(lengths) for length in lengths]
    made = []
    for kind in (False, True):
        rows = [row for row, one in enumerate(short) if one is kind]
        if not rows:
            continue
        own, sizes = [slots[row] for row in rows], [lengths[row] for row in rows]
        made.append(
            Group(
                _run(rows, device),
                _run(own, device),
                torch.tensor(sizes, device=device),
                max(sizes),
                min(sizes) == max(sizes),
            )
        )
    return made


def _run(places: list[int], device: torch.device) -> slice | Tensor:
    """A slice where the places follow each other, else an index."""
    if places == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return torch.tensor(places, device=device)


_CURRENT = threading.local()


def begin(step: Step) -> None:
    """Set the step for the forward that follows in this thread."""
    _CURRENT.step = step


def end() -> None:
    """Forget it."""
    _CURRENT.step = None


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[1, heads, T, d] queries against the pool → [1, T, heads, d]. Shapes as transformers gives them."""
    if softcap is not None or kwargs.get("s_aux") is not None:
        raise ModelError(
            "attention soft caps and sinks are not served", remedy="export the model and serve it elsewhere"
        )
    step = _CURRENT.step
    keys, values = step.pool.keys[module.layer_idx], step.pool.values[module.layer_idx]
    out = torch.empty_like(query)
    if step.decode:
        _write_single(step, keys, values, key, value)
        out[:, :, : step.decode] = _decode(step, query[:, :, : step.decode], keys, values, scaling, sliding_window)
    start = step.decode
    for span in step.spans[step.decode :]:
        stop, last = start + span.rows, span.cached + span.rows
        keys[span.slot, :, span.cached : last] = key[0, :, start:stop]
        values[span.slot, :, span.cached : last] = value[0, :, start:stop]
        out[:, :, start:stop] = _chunk(span, query[:, :, start:stop], keys, values, scaling, sliding_window)
        start = stop
    return out.transpose(1, 2).contiguous(), None


def _write_single(step: Step, keys: Tensor, values: Tensor, key: Tensor, value: Tensor) -> None:
    places = step.lengths - 1
    keys[step.slots, :, places] = key[0, :, : step.decode].transpose(0, 1)
    values[step.slots, :, places] = value[0, :, : step.decode].transpose(0, 1)


def _decode(step: Step, query: Tensor, keys: Tensor, values: Tensor, scale: float | None, window: int | None) -> Tensor:
    """All single tokens, group by group."""
    out = torch.empty_like(query)
    for group in step.groups:
        out[0, :, group.rows] = _decode_group(
            query[0, :, group.rows].transpose(0, 1), keys, values, group, scale, window
        )
    return out


def _decode_group(
    query: Tensor, keys: Tensor, values: Tensor, group: Group, scale: float | None, window: int | None
) -> Tensor:
    """query [R, heads, d]; grouped-query heads are folded into the query axis, so no key is repeated."""
    count, heads, dim = query.shape
    kv_heads, longest = keys.shape[1], group.longest
    folded = query.reshape(count, kv_heads, heads // kv_heads, dim)
    mask = None
    if not group.even or (window is not None and longest > window):
        places = torch.arange(longest, device=keys.device)
        mask = places[None] < group.lengths[:, None]
        if window is not None:
            mask &= places[None] >= group.lengths[:, None] - window
        mask = mask[:, None, None]
    k, v = keys[group.slots, :, :longest], values[group.slots, :, :longest]
    made = functional.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
    return made.reshape(count, heads, dim).transpose(0, 1)


def _chunk(span: Span, query: Tensor, keys: Tensor, values: Tensor, scale: float | None, window: int | None) -> Tensor:
    """One prompt chunk, causal after the entries that are already there."""
    last = span.cached + span.rows
    k, v = keys[span.slot : span.slot + 1, :, :last], values[span.slot : span.slot + 1, :, :last]
    places = torch.arange(last, device=keys.device)[None]
    own = torch.arange(span.cached, last, device=keys.device)[:, None]
    mask = places <= own
    if window is not None:
        mask &= places > own - window
    return functional.scaled_dot_product_attention(query, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def register() -> None:
    """Make the function known to transformers (idempotent)."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, slot_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
