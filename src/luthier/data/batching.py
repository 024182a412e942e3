"""Rows become groups of batches: packed into token budgets, in an order that hangs only on (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from luthier.core.seeding import generator
from luthier.core.types import Row
from luthier.data.pack import best_fit, fill
from luthier.engine.batch import Batch, from_rows

DEFAULT_MICRO_TOKENS = 4096


def lengths_of(rows: Sequence[Row]) -> np.ndarray:
    """[rows] tokens."""
    known = getattr(rows, "lengths", None)
    return np.asarray(known) if known is not None else np.array([len(row.input_ids) for row in rows], dtype=np.int64)


class BatchPlan:
    """Which rows form which step. A group is one optimizer step; its batches are the micro-batches.

    With `batch_tokens`, groups are filled in the shuffled order (so every step sees rows of all kinds), and best-fit
    packing into `micro_tokens` happens inside a group. With
    `batch_size`, micro-batches have that many rows and a group has `accumulate` of them. Every row occurs exactly
    once an epoch. The first group of the first epoch holds the longest row, so that memory trouble comes at once.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        accumulate: int = 1,
        micro_tokens: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self.batch_tokens, self.batch_size, self.accumulate = batch_tokens, batch_size, accumulate
        self.micro_tokens = micro_tokens or DEFAULT_MICRO_TOKENS
        self.lengths = lengths_of(rows)
        self._planned: tuple[int, list[list[list[int]]]] = (-1, [])

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """Groups of micro-batches of row indices."""
        if self._planned[0] != epoch:
            self._planned = (epoch, self._make(epoch))
        return self._planned[1]

    def _make(self, epoch: int) -> list[list[list[int]]]:
        source = generator(self.seed, "batches", epoch)
        order = source.permutation(len(self.rows)) if self.shuffle else np.arange(len(self.rows))
        if self.batch_size is not None:
            size = self.batch_size
            micros = [order[i : i + size].tolist() for i in range(0, len(order), size)]
            groups = [micros[i : i + self.accumulate] for i in range(0, len(micros), self.accumulate)]
        else:
            budget = int(self.batch_tokens or DEFAULT_MICRO_TOKENS)
            groups = [self._micro(pack) for pack in fill(self.lengths, order, budget)]
        if epoch == 0 and self.shuffle and len(groups) > 1:
            heaviest = max(range(len(groups)), key=lambda g: self._cost(groups[g]))
            groups.insert(0, groups.pop(heaviest))
        return groups

    def _cost(self, group: list[list[int]]) -> tuple[int, int]:
        """Of the rows alone: eight rows are the same group whether they go through together or one by one."""
        lengths = self.lengths[[index for micro in group for index in micro]]
        return int(lengths.max()), int(lengths.sum())

    def _micro(self, pack: list[int]) -> list[list[int]]:
        parts = best_fit(self.lengths, np.asarray(pack), self.micro_tokens)
        return [sorted(part, key=lambda index: -int(self.lengths[index])) for part in parts]

    def steps(self, epoch: int) -> int:
        """Groups of an epoch."""
        return len(self.plan(epoch))

    def groups(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The groups from `start` on."""
        for group in self.plan(epoch)[start:]:
            yield [from_rows([self.rows[index] for index in micro]) for micro in group]


def evaluation_batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[Batch]:
    """Every row exactly once, similar lengths together, as many as the budget holds."""
    lengths = lengths_of(rows)
    part: list[int] = []
    for index in np.argsort(lengths, kind="stable").tolist():
        if part and (len(part) + 1) * int(lengths[index]) > batch_tokens:
            yield from_rows([rows[i] for i in part])
            part = []
        part.append(index)
    if part:
        yield from_rows([rows[i] for i in part])
