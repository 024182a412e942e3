"""A Batch: several rows as one flat run of tokens with segment boundaries.

The flat form is what the data room makes and what the loss is counted on; `padded` turns it into the
[B, L] form for models that cannot take segments. All positions restart at 0 in each segment.

    input_ids    [T]  a a a b b c c c c
    position_ids [T]  0 1 2 0 1 0 1 2 3
    bounds     [S+1]  0     3   5       9
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from luthier.core.types import IGNORE, Row


@dataclass(frozen=True)
class Batch:
    """Flat tokens of S rows. `targets[t]` is the token that position t must predict (already shifted,
    IGNORE where nothing is trained). `labels` is per row: class index, value or 0/1 vector, or None."""

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64
    targets: Tensor  # [T] int64
    bounds: Tensor  # [S+1] int64, CPU
    row_ids: tuple[str, ...]
    labels: Tensor | None = None  # [S] or [S, classes]
    tasks: Tensor | None = None  # [S] int64, multi-task methods

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return (self.bounds[1:] - self.bounds[:-1]).tolist()

    @property
    def supervised(self) -> int:
        """How many token losses this batch has (rows, where rows are labelled)."""
        if self.labels is not None:
            return len(self.row_ids)
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device (`bounds` stays on the CPU: it steers Python)."""
        moved = {
            name: value.to(device)
            for name in ("input_ids", "position_ids", "targets", "labels", "tasks")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def segment_of_token(self) -> Tensor:
        """[T] index of the row that each token belongs to."""
        lengths = self.bounds[1:] - self.bounds[:-1]
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


@dataclass(frozen=True)
class Padded:
    """[B, L] view of a batch. `flat` [T] maps each flat token to its place in the flattened [B*L]."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    flat: Tensor


def from_rows(rows: Sequence[Row]) -> Batch:
    """Concatenate rows. Labels are shifted here, inside each row: the last position predicts nothing."""
    if not rows:
        raise ValueError("a batch needs at least one row")
    lengths = [len(row.input_ids) for row in rows]
    ids = torch.cat([torch.as_tensor(row.input_ids, dtype=torch.int64) for row in rows])
    targets = torch.full_like(ids, IGNORE)
    start = 0
    for row, length in zip(rows, lengths, strict=True):
        targets[start : start + length - 1] = torch.as_tensor(row.labels[1:], dtype=torch.int64)
        start += length
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    positions = torch.cat([torch.arange(length) for length in lengths])
    labels = None
    if rows[0].target is not None:
        is_class = isinstance(rows[0].target, int)
        labels = torch.tensor([row.target for row in rows], dtype=torch.int64 if is_class else torch.float32)
    tasks = torch.tensor([row.task for row in rows])
    return Batch(ids, positions, targets, bounds, tuple(row.id for row in rows), labels, tasks)


def padded(batch: Batch, pad_id: int, side: str = "right") -> Padded:
    """Lay the rows out as [B, L] with `pad_id`; padded positions get position 0 and mask 0."""
    lengths = batch.bounds[1:] - batch.bounds[:-1]
    width, count = int(lengths.max()), len(lengths)
    row = batch.segment_of_token()
    offset = torch.arange(len(row)) - batch.bounds[row]
    if side == "left":
        offset = offset + (width - lengths)[row]
    flat = (row * width + offset).to(batch.input_ids.device)

    def scatter(values: Tensor, fill: int) -> Tensor:
        out = torch.full((count * width,), fill, dtype=values.dtype, device=values.device)
        return out.index_copy(0, flat, values).view(count, width)

    mask = scatter(torch.ones_like(batch.input_ids), 0)
    return Padded(scatter(batch.input_ids, pad_id), mask, scatter(batch.position_ids, 0), flat)


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """The batch cut into at most `parts` batches of whole rows, in order; itself for 1."""
    count = len(batch.row_ids)
    if parts <= 1 or count <= 1:
        return [batch]
    edges = sorted({round(index * count / parts) for index in range(parts + 1)})
    return [_rows_between(batch, start, stop) for start, stop in pairwise(edges)]


def _rows_between(batch: Batch, start: int, stop: int) -> Batch:
    first, last = int(batch.bounds[start]), int(batch.bounds[stop])
    return Batch(
        batch.input_ids[first:last],
        batch.position_ids[first:last],
        batch.targets[first:last],
        batch.bounds[start : stop + 1] - first,
        batch.row_ids[start:stop],
        None if batch.labels is None else batch.labels[start:stop],
        None if batch.tasks is None else batch.tasks[start:stop],
    )
