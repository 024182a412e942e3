"""Rows of a batch that begin with the same tokens compute them once: a trie of segments over one flat row.

    rows      s s s a a      s s s b        s s s b c c       (s: an instruction, b: an example within it)
    trie      s s s ─┬─ a a
                     └─ b ─┬─ (last token of the second row)
                           └─ c c
    flat      s s s  a a  b  …        each node sees its ancestors and itself; `back` gives every row its states

Exact for causal attention without dropout: a token's state hangs on the tokens before it alone. With dropout, rows
that share a node share its draw. Pure torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from luthier.engine.batch import Batch

LEAST = 16
"""Fewest tokens of a node with several rows: below, another attention call costs more than the tokens."""


@dataclass(frozen=True)
class Shared:
    """The batch as a trie. `parents[n]` is the node before node n, -1 at a root."""

    input_ids: Tensor  # [U] U ≤ T
    position_ids: Tensor  # [U]
    bounds: tuple[int, ...]  # [nodes + 1]
    parents: tuple[int, ...]  # [nodes]
    back: Tensor  # [T] place in U of every token of the batch


def share(batch: Batch, least: int = LEAST) -> Shared | None:
    """The trie of a batch, or None where no `least` tokens are shared. Tokens and positions must both be equal."""
    edges = batch.bounds.tolist()
    ids, positions = batch.input_ids.cpu().numpy(), batch.position_ids.cpu().numpy()
    rows = [np.stack([ids[a:b], positions[a:b]]) for a, b in pairwise(edges)]
    order = sorted(range(len(rows)), key=lambda index: rows[index].T.tolist())
    common = [_common(rows[one], rows[other]) for one, other in pairwise(order)]
    if not common or max(common) < least:
        return None
    nodes = _nodes(common, [rows[index].shape[1] for index in order], least)
    take, parents, bounds = [], [], [0]
    back = np.empty(len(ids), dtype=np.int64)
    for first, last, start, stop, parent in nodes:
        offset = edges[order[first]]
        take.append(np.arange(offset + start, offset + stop))
        for place in range(first, last):
            own = edges[order[place]]
            back[own + start : own + stop] = np.arange(bounds[-1], bounds[-1] + stop - start)
        parents.append(parent)
        bounds.append(bounds[-1] + stop - start)
    chosen = torch.from_numpy(np.concatenate(take)).to(batch.input_ids.device)
    places = torch.from_numpy(back).to(batch.input_ids.device)
    return Shared(batch.input_ids[chosen], batch.position_ids[chosen], tuple(bounds), tuple(parents), places)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Equal tokens at the beginning; the last token of a row stays its own."""
    size = min(one.shape[1], other.shape[1]) - 1
    differs = (one[:, :size] != other[:, :size]).any(axis=0)
    return int(differs.argmax()) if differs.any() else size


def _nodes(common: list[int], lengths: list[int], least: int) -> list[tuple[int, int, int, int, int]]:
    """(first row, last row, first token, last token, parent) of each node, over rows in sorted order."""
    made: list[tuple[int, int, int, int, int]] = []
    todo = [(0, len(lengths), 0, -1)]
    while todo:
        first, last, depth, parent = todo.pop()
        if last - first == 1:
            made.append((first, last, depth, lengths[first], parent))
            continue
        inside = common[first : last - 1]
        shallow = min(inside)
        if shallow - depth >= least:
            made.append((first, last, depth, shallow, parent))
            depth, parent = shallow, len(made) - 1
        cuts = [first, *(first + place + 1 for place, size in enumerate(inside) if size == shallow), last]
        todo += [(a, b, depth, parent) for a, b in pairwise(cuts)]
    return made
