"""One optimizer step: accumulate, check that all is finite, clip, step; smaller parts when memory runs out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from luthier.core.errors import Diverged, OutOfResource
from luthier.engine.batch import Batch, split_rows

if TYPE_CHECKING:
    from luthier.train.loop import Loop

SPIKE_WINDOW = 20
SPIKE_FACTOR = 6.0
"""A step loss this many median absolute deviations over the recent median is a spike."""


@dataclass
class StepResult:
    """Sums over the group, and the row means for the flight recorder."""

    total: float
    count: int
    grad_norm: float
    row_means: list[float]
    row_counts: list[int]


def take_step(loop: Loop, group: Sequence[Batch]) -> StepResult:
    """Forward, backward and update for one group. Diverged before anything non-finite is written."""
    weights = list(loop.model.parameters_by_name().values())
    while True:
        try:
            result = _accumulate(loop, group, weights)
            break
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _halve(loop, group, error)
    _refuse_not_finite(loop, group, weights, result)
    if loop.settings.clip_norm:
        nn.utils.clip_grad_norm_(weights, loop.settings.clip_norm, foreach=len(weights) > 8)
    if _spike(loop, group, result):
        loop.optimizer.zero_grad(set_to_none=True)
        return result
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)
    return result


def _accumulate(loop: Loop, group: Sequence[Batch], weights: Sequence[nn.Parameter]) -> StepResult:
    """Gradients of Σ total / Σ count: each micro-batch is divided by the count of the whole group."""
    loop.optimizer.zero_grad(set_to_none=True)
    count = sum(batch.supervised for batch in group)
    total, means, counts = 0.0, [], []
    for batch in group:
        for part in split_rows(batch, loop.state.split):
            made = loop.loss(part)
            (made.total / max(1, count)).backward()
            total += float(made.total.detach())
            means += (made.row_losses / made.row_counts.clamp(min=1)).tolist()
            counts += [int(value) for value in made.row_counts.tolist()]
    squares = [weight.grad.detach().float().square().sum() for weight in weights if weight.grad is not None]
    norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return StepResult(total, count, norm, [round(mean, 6) for mean in means], counts)


def _refuse_not_finite(loop: Loop, group: Sequence[Batch], weights: Sequence[nn.Parameter], found: StepResult) -> None:
    """Loss, gradient and weights, before the optimizer touches anything."""
    state = loop.state
    bad = ""
    if not math.isfinite(found.total):
        bad = "the loss"
    elif not math.isfinite(found.grad_norm):
        bad = "the gradient"
    elif state.step % SPIKE_WINDOW == 0 and not all(bool(torch.isfinite(weight).all()) for weight in weights):
        bad = "a weight"
    if not bad:
        return
    loop.optimizer.zero_grad(set_to_none=True)
    rows = [row for batch in group for row in batch.row_ids]
    worst = [row for row, mean in zip(rows, found.row_means, strict=False) if not math.isfinite(mean)] or rows
    raise Diverged(
        f"{bad} is not finite at step {state.step + 1}, before it was applied",
        where=f"rows {', '.join(worst[:8])}{' …' if len(worst) > 8 else ''}",
        remedy="lower train.lr, look at these rows, or raise train.schedule.warmup; the last good checkpoint is kept",
    )


def _spike(loop: Loop, group: Sequence[Batch], found: StepResult) -> bool:
    """Tell a loss spike and act by policy; True when this step must not be applied."""
    state, loss = loop.state, found.total / max(1, found.count)
    recent = state.recent
    is_spike = False
    if len(recent) >= SPIKE_WINDOW:
        middle = statistics.median(recent)
        spread = statistics.median(abs(value - middle) for value in recent) + 1e-6
        is_spike = loss > middle + SPIKE_FACTOR * spread and loss > 1.5 * middle
    state.recent = [*recent, loss][-SPIKE_WINDOW:]
    if not is_spike:
        return False
    rows = [row for batch in group for row in batch.row_ids]
    worst = sorted(zip(found.row_means, rows, strict=False), reverse=True)[:3]
    policy = loop.settings.spikes
    loop.emit("spike", step=state.step + 1, loss=loss, rows=[row for _, row in worst], policy=policy)
    if policy == "stop":
        raise Diverged(
            f"the loss jumped to {loss:.3f} at step {state.step + 1}",
            where=f"rows {', '.join(row for _, row in worst)}",
            remedy="look at these rows, or lower train.lr",
        )
    return policy in ("skip_row", "rollback")


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in str(error).lower()
        or ("can't allocate memory" in str(error).lower() or "not enough memory" in str(error).lower())
    )


def _halve(loop: Loop, group: Sequence[Batch], error: BaseException) -> None:
    """Cut each micro-batch into twice as many parts; the sum over the group stays the same."""
    if all(len(batch.row_ids) <= loop.state.split for batch in group):
        raise OutOfResource(
            f"one row does not fit into memory ({max(max(b.lengths) for b in group)} tokens)",
            where="data.max_length",
            remedy="lower data.max_length, or set train.activation_checkpointing: true",
        ) from error
    loop.state.split *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    loop.emit(
        "warning",
        what=f"out of memory: micro-batches are cut into {loop.state.split} parts",
        where=f"step {loop.state.step + 1}",
        remedy="the result stays the same; set train.micro_tokens lower",
    )
