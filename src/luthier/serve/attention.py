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


@dataclass
class Step:
    """What the attention function must know of the forward that is running."""

    pool: Pool
    spans: Sequence[Span]
    decode: int = 0
    """How many leading spans are single tokens."""
    slots: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, pool: Pool, spans: Sequence[Span]) -> Step:
        """Count the leading single-token spans and lay out their slots and lengths."""
        count = 0
        while count < len(spans) and spans[count].rows == 1:
            count += 1
        slots = torch.tensor([span.slot for span in spans[:count]], device=pool.device)
        lengths = torch.tensor([span.cached + 1 for span in spans[:count]], device=pool.device)
        return cls(pool, spans, count, slots, lengths)


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
    """All single tokens, in at most two groups by length: short requests must not pay for one long one."""
    lengths = step.lengths
    longest = int(lengths.max())
    short = lengths * 4 <= longest
    groups = [short, ~short] if bool(short.any()) else [torch.ones_like(short)]
    out = torch.empty_like(query)
    for group in groups:
        rows = group.nonzero().flatten()
        out[:, :, rows] = _decode_group(
            query[0, :, rows].transpose(0, 1), keys, values, step.slots[rows], lengths[rows], scale, window
        )
    return out


def _decode_group(
    query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, lengths: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """query [R, heads, d]; grouped-query heads are folded into the query axis, so no key is repeated."""
    longest = int(lengths.max())
    count, heads, dim = query.shape
    kv_heads = keys.shape[1]
    folded = query.reshape(count, kv_heads, heads // kv_heads, dim)
    places = torch.arange(longest, device=keys.device)
    mask = places[None] < lengths[:, None]
    if window is not None:
        mask &= places[None] >= lengths[:, None] - window
    made = functional.scaled_dot_product_attention(
        folded, keys[slots, :, :longest], values[slots, :, :longest], attn_mask=mask[:, None, None], scale=scale
    )
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
