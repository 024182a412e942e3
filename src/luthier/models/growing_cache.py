"""A cache whose layers grow in place: a token is written behind the others, and rows that have ended are dropped.

transformers' DynamicCache copies all keys and values for every token. Here they are views of buffers with room
behind them, [rows, kv_heads, room, head_dim], which are copied only when the room is used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Tokens of room behind a fresh buffer, or half of what it holds where that is more."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write behind what is there; give back all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: list[Tensor | None] = [None, None]
        used = self.get_seq_length()
        there: Any = (self.keys, self.values) if used else (key_states[..., :0, :], value_states[..., :0, :])
        self.keys = self._behind(0, there[0], key_states)
        self.values = self._behind(1, there[1], value_states)
        return self.keys, self.values

    def _behind(self, index: int, there: Tensor, new: Tensor) -> Tensor:
        """What is there and the new, in one buffer."""
        used, size = there.shape[-2], there.shape[-2] + new.shape[-2]
        buffer = self._buffers[index]
        if buffer is None or buffer.shape[-2] < size:
            buffer = new.new_empty(*new.shape[:-2], size + max(ROOM, size // 2), new.shape[-1])
            buffer[..., :used, :] = there
            self._buffers[index] = buffer
        buffer[..., used:size, :] = new
        return buffer[..., :size, :]

    def keep(self, rows: Tensor, first: int = 0) -> None:
        """Only these rows, without their first tokens."""
        if self.get_seq_length():
            there: Any = (self.keys, self.values)
            self.keys, self.values = (part[rows, ..., first:, :] for part in there)
            self._buffers = [None, None]

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self._buffers = [None, None]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._buffers = [None, None]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keep(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.keep(beam_idx)


def joined(caches: Sequence[Any]) -> DynamicCache:
    """The rows of several caches in one, empty places before the shorter ones (which a mask must hide)."""
    made = growing()
    width = max(cache.get_seq_length() for cache in caches)
    for index in range(len(caches[0].layers)):
        parts: list[list[Tensor]] = [[], []]
        for cache in caches:
            layer = cache.layers[index]
            for found, part in zip(parts, (layer.keys, layer.values), strict=True):
                found.append(torch.nn.functional.pad(part, (0, 0, width - part.shape[-2], 0)))
        made.update(torch.cat(parts[0]), torch.cat(parts[1]), index)
    return made


def can_join(cache: Any) -> bool:
    """Whether every layer keeps keys and values that grow (no recurrent states, no cross-attention)."""
    layers = getattr(cache, "layers", [])
    return bool(layers) and all(isinstance(layer, GrowingLayer) and layer.get_seq_length() for layer in layers)


def growing() -> DynamicCache:
    """An empty cache of such layers, as many as the model asks for."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


def keep_rows(cache: Any, rows: Sequence[int], first: int = 0) -> int:
    """Drop all other rows of a cache, and its first tokens where every layer can. How many of these are gone."""
    halves = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    caches = [half for half in halves if half is not None] or [cache]
    layers = [layer for one in caches for layer in one.layers]
    cut = first if len(caches) == 1 and all(isinstance(layer, GrowingLayer) for layer in layers) else 0
    for layer in layers:
        chosen = torch.tensor(rows, device=getattr(layer, "device", None))
        if isinstance(layer, GrowingLayer):
            layer.keep(chosen, cut)
        else:
            layer.reorder_cache(chosen)
    return cut
