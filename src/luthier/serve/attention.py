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
CALL = 1 << 14
"""Entries of a layer's keys that are read in the time that one more call takes."""


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
        self.local_layers: frozenset[int] = frozenset()
        """Layers that see a window or a chunk only, and must say so with each call."""
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
class Group:
    """Single tokens that are computed together: rows of the step, where their slots lie, and their lengths."""

    rows: slice | Tensor
    slots: slice | Tensor
    """A slice where they lie side by side: then no key is copied."""
    lengths: Tensor
    longest: int
    even: bool
    """All as long as the longest, so that nothing is masked."""
    dtype: torch.dtype = torch.float32
    back: Tensor | None = None
    """Where the step's rows lie in the group's order, if the group has all of them in another order."""
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """[R, 1, 1, longest], 0 or -inf, made once a step for all layers of one window; None: everything is seen."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> Tensor | None:
        if self.even and (window is None or self.longest <= window):
            return None
        places = torch.arange(self.longest, device=self.lengths.device)
        mask = places[None] < self.lengths[:, None]
        if window is not None:
            mask &= places[None] >= self.lengths[:, None] - window
        added = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        return added[:, None, None]


@dataclass
class Step:
    """What the attention function must know of the forward that is running."""

    pool: Pool
    spans: Sequence[Span]
    decode: int = 0
    """How many leading spans are single tokens."""
    entries: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """[decode · kv_heads] where the single tokens' keys belong in a layer's pool seen as [slots · heads · length, d]"""
    groups: Sequence[Group] = ()
    masks: dict[tuple[int, int, int | None], Tensor | None] = field(default_factory=dict)
    """Of prompt chunks: (cached, rows, window) → mask, the same in all layers."""

    @classmethod
    def of(cls, pool: Pool, spans: Sequence[Span]) -> Step:
        """Count the leading single-token spans and lay out their slots and lengths."""
        count = 0
        while count < len(spans) and spans[count].rows == 1:
            count += 1
        if not count:
            return cls(pool, spans)
        slots, lengths = [span.slot for span in spans[:count]], [span.cached + 1 for span in spans[:count]]
        heads, size, device = pool.shape[2], pool.length, pool.device
        places = [slot * heads * size + length - 1 for slot, length in zip(slots, lengths, strict=True)]
        entries = torch.tensor([place + head * size for place in places for head in range(heads)], device=device)
        return cls(pool, spans, count, entries, _groups(slots, lengths, pool))

    def mask(self, span: Span, window: int | None) -> Tensor | None:
        """[rows, cached + rows] of a prompt chunk; None where it is plainly causal from the beginning."""
        last = span.cached + span.rows
        if not span.cached and (window is None or last <= window):
            return None
        key = (span.cached, span.rows, window)
        if key not in self.masks:
            places = torch.arange(last, device=self.pool.device)[None]
            own = torch.arange(span.cached, last, device=self.pool.device)[:, None]
            mask = places <= own
            if window is not None:
                mask &= places > own - window
            self.masks[key] = mask
        return self.masks[key]


def _groups(slots: list[int], lengths: list[int], pool: Pool) -> list[Group]:
    """At most two groups by length: short requests must not pay for long ones. In each, rows in slot order."""
    device, dtype, made = pool.device, pool.dtype, []
    cut = _cut(lengths, pool.shape[2] * pool.shape[3])
    order = sorted(range(len(slots)), key=slots.__getitem__)
    for kind in (False, True):
        rows = [row for row in order if (lengths[row] <= cut) is kind]
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
                dtype,
                None if rows == list(range(len(slots))) else _inverse(rows, device),
            )
        )
    return made


def _cut(lengths: list[int], entries: int) -> int:
    """The length up to which requests are computed by themselves, 0 if all are computed together.

    `entries` a position and row. A second call must pay for itself, and for the copies of keys whose slots do not lie
    side by side (an eighth).
    """
    ordered = sorted(lengths)
    best, most = 0, CALL // entries + len(ordered) * ordered[-1] // 8
    for count, length in enumerate(ordered, 1):
        if (ordered[-1] - length) * count > most:
            best, most = length, (ordered[-1] - length) * count
    return best


def _inverse(rows: list[int], device: torch.device) -> Tensor:
    """Place of every row that there is, in ascending order of the rows."""
    return torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), device=device)


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
    if sliding_window is None and module.layer_idx in step.pool.local_layers:
        raise ModelError("a window or chunks that are only in the mask are not served in slots")
    keys, values = step.pool.keys[module.layer_idx], step.pool.values[module.layer_idx]
    tokens, decode = query[0].transpose(0, 1), step.decode  # [T, heads, d], mostly contiguous
    if decode:
        for store, fresh in ((keys, key), (values, value)):
            entries = fresh[0].transpose(0, 1)[:decode].reshape(-1, fresh.shape[-1])
            store.view(-1, store.shape[-1]).index_copy_(0, step.entries, entries)
        if len(step.groups) == 1 and decode == len(step.spans):
            group = step.groups[0]
            made = _decode_group(tokens, keys, values, group, scaling, sliding_window)
            return (made if group.back is None else made.index_select(0, group.back))[None], None
    out = tokens.new_empty(tokens.shape)
    for group in step.groups:
        out[group.rows] = _decode_group(tokens, keys, values, group, scaling, sliding_window)
    start = decode
    for span in step.spans[decode:]:
        stop, last = start + span.rows, span.cached + span.rows
        keys[span.slot, :, span.cached : last] = key[0, :, start:stop]
        values[span.slot, :, span.cached : last] = value[0, :, start:stop]
        k, v = keys[span.slot : span.slot + 1, :, :last], values[span.slot : span.slot + 1, :, :last]
        mask = step.mask(span, sliding_window)
        made = functional.scaled_dot_product_attention(
            query[:, :, start:stop], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        out[start:stop] = made[0].transpose(0, 1)
        start = stop
    return out[None], None


def _decode_group(
    tokens: Tensor, keys: Tensor, values: Tensor, group: Group, scale: float | None, window: int | None
) -> Tensor:
    """tokens [T, heads, d] → the group's [R, heads, d]; grouped-query heads are folded into the query axis, so no key
    is repeated."""
    heads, dim = tokens.shape[1:]
    kv_heads, longest = keys.shape[1], group.longest
    query = tokens[group.rows].reshape(-1, kv_heads, heads // kv_heads, dim)
    k, v = _of(keys, group.slots, longest), _of(values, group.slots, longest)
    made = functional.scaled_dot_product_attention(query, k, v, attn_mask=group.mask(window), scale=scale)
    return made.reshape(-1, heads, dim)


def _of(store: Tensor, slots: slice | Tensor, longest: int) -> Tensor:
    """[R, kv_heads, longest, d]. `index_select` copies in two thirds of the time that indexing takes."""
    return store[slots, :, :longest] if isinstance(slots, slice) else store[:, :, :longest].index_select(0, slots)


def register() -> None:
    """Make the function known to transformers (idempotent)."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, slot_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
