"""Shifted sparse attention (S²-Attn of LongLoRA, Chen et al. 2023, arXiv:2309.12307), for training long windows.

    first half of the heads     |0 1 2 3|4 5 6 7|8 9
    second half                 |0 1|2 3 4 5|6 7 8 9|      groups of 4, shifted by 2

A token attends within its group only, so attention costs T × group instead of T × T; from layer to layer the two halves
carry what is beyond. Lossy while training; evaluation and serving attend in full. Unlike the paper's, no group wraps
around the end of a row, so nothing ever sees what comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from luthier.engine.attention import Segments, segment_attention


@dataclass(frozen=True)
class Shifted:
    """The groups of both halves of the heads."""

    plain: Segments
    moved: Segments

    @classmethod
    def of(cls, segments: Segments, group: int) -> Shifted:
        """Cut every segment into groups of `group` tokens, and again half a group later."""
        return cls(_cut(segments, group, group), _cut(segments, group, group // 2))


def _cut(segments: Segments, group: int, first: int) -> Segments:
    edges = [0]
    for start, stop in pairwise(segments.bounds):
        edges += [*range(start + first, stop, group), stop]
    return Segments.of(edges)


def shifted_attention(query: Tensor, key: Tensor, value: Tensor, shifted: Shifted, **options: Any) -> Tensor:
    """As `segment_attention`: query [heads, T, d], key/value [kv_heads, T, d] → [T, heads, d].

    Halves are cut between groups of query heads that share their keys; one shared key-value head serves both halves.
    """
    heads, shared = query.shape[0], key.shape[0]
    if shared > 1 and shared % 2:
        key, value = (tensor.repeat_interleave(heads // shared, 0) for tensor in (key, value))
        shared = heads
    middle = heads // 2 if shared == 1 else shared // 2 * (heads // shared)
    first, second = (slice(None), slice(None)) if shared == 1 else (slice(shared // 2), slice(shared // 2, None))
    halves = (
        segment_attention(query[:middle], key[first], value[first], shifted.plain, **options),
        segment_attention(query[middle:], key[second], value[second], shifted.moved, **options),
    )
    return torch.cat(halves, dim=1)
