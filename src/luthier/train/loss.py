"""What a loss function gives to the loop: a sum and a count, never a mean of means."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """`total` is the differentiable sum over `count` supervised units (tokens or rows); `row_losses` [S] and
    `row_counts` [S] are its detached parts by row."""

    total: Tensor
    count: int
    row_losses: Tensor
    row_counts: Tensor
