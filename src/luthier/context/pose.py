"""Positional skip-wise training (PoSE, Zhu et al. 2023, arXiv:2309.10400): a long window learnt from short rows.

    row of n tokens      0 1 2 3 | 4 5 6 7
    positions            0 1 2 3 | 4+u 5+u 6+u 7+u      u uniform in 0 … target - n, the cut anywhere in the row

Attention costs what n costs; distances up to the target are seen. What is drawn depends on (seed, epoch, row) only,
so a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from luthier.core.seeding import generator
from luthier.engine.batch import Batch


def skipped(batch: Batch, target: int, seed: int, epoch: int) -> Batch:
    """The batch with a jump in every row's positions; the largest position stays below `target`."""
    positions = batch.position_ids.clone()
    starts = batch.bounds.tolist()
    for name, start, stop in zip(batch.row_ids, starts, starts[1:], strict=False):
        length = stop - start
        if length < 2 or length >= target:
            continue
        source = generator(seed, "pose", epoch, name)
        cut = int(source.integers(1, length))
        positions[start + cut : stop] += int(source.integers(0, target - length + 1))
    return replace(batch, position_ids=torch.as_tensor(positions))


class Skipping:
    """A plan of batches whose rows skip positions."""

    def __init__(self, plan: Any, target: int, seed: int):
        self.inner, self.target, self.seed = plan, target, seed

    def steps(self, epoch: int) -> int:
        """Groups of an epoch."""
        return int(self.inner.steps(epoch))

    def groups(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The groups from `start` on, with jumps."""
        for group in self.inner.groups(epoch, start):
            yield [skipped(batch, self.target, self.seed, epoch) for batch in group]
