"""One optimizer step: accumulate, check that all is finite, clip, step; smaller parts when memory runs out."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from luthier.core import signals
from luthier.core.errors import Diverged, ModelError, OutOfResource
from luthier.core.seeding import derive, seed_everything
from luthier.engine.batch import Batch, split_rows
from luthier.train import optimizer_state, spikes

if TYPE_CHECKING:
    from luthier.train.loop import Loop

REMEDY = "lower train.lr, look at these rows, or raise train.schedule.warmup; the last good checkpoint is kept"


class Dropped(Exception):
    """A signal came between two micro-batches: the partial accumulation is thrown away, no step was made."""


@dataclass
class StepResult:
    """Sums over the group, and the row means for the flight recorder."""

    total: float = 0.0
    count: int = 0
    grad_norm: float = 0.0
    rows: list[str] = field(default_factory=list)
    row_means: list[float] = field(default_factory=list)
    row_counts: list[int] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean over the supervised units."""
        return self.total / max(1, self.count)


def take_step(loop: Loop, group: Sequence[Batch]) -> StepResult:
    """Forward, backward and update for one group. Diverged before anything non-finite is applied."""
    weights = [weight for weight in loop.model.parameters_by_name().values() if weight.requires_grad]
    group = spikes.without(group, loop.state.skipped)
    result, norm = _accumulate_in_memory(loop, group, weights)
    _refuse_not_finite(loop, weights, result)
    limit = spikes.threshold(loop.state.recent)
    if limit is not None and result.loss > limit:
        return _spike(loop, group, result, limit, weights)
    loop.state.recent = [*loop.state.recent, result.loss][-spikes.WINDOW :]
    _apply(loop, weights, norm)
    return result


def _apply(loop: Loop, weights: Sequence[nn.Parameter], norm: Tensor) -> None:
    if loop.settings.clip_norm:
        clip_grads_with_norm_(weights, loop.settings.clip_norm, norm)
    try:
        loop.optimizer.step()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        need = optimizer_state.expected_bytes(loop.settings.optimizer, loop.model.parameters_by_name())
        raise OutOfResource(
            f"the optimizer's state does not fit into memory ({need / 1e6:.0f} MB)",
            where="train.optimizer",
            remedy="method: lora, or train.optimizer: adafactor",
        ) from None
    loop.optimizer.zero_grad(set_to_none=True)


def _accumulate_in_memory(
    loop: Loop, group: Sequence[Batch], weights: Sequence[nn.Parameter]
) -> tuple[StepResult, Tensor]:
    while True:
        try:
            return _accumulate(loop, group, weights)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        _halve(loop, group)  # outside of the handler: its traceback keeps the tensors of the failed forward alive


def _accumulate(loop: Loop, group: Sequence[Batch], weights: Sequence[nn.Parameter]) -> tuple[StepResult, Tensor]:
    """Gradients of Σ total / Σ count: each micro-batch is divided by the count of the whole group."""
    loop.optimizer.zero_grad(set_to_none=True)
    seed_everything(derive(loop.seed, "step", loop.state.step))
    count = sum(batch.supervised for batch in group)
    made: list[tuple[Tensor, Tensor, Tensor]] = []
    rows: list[str] = []
    for batch in group:
        for part in split_rows(batch, loop.state.split):
            if made and signals.asked():
                loop.optimizer.zero_grad(set_to_none=True)
                raise Dropped
            output = loop.loss(part)
            if not output.total.requires_grad and output.count:
                raise ModelError(
                    "the loss does not depend on any trained weight",
                    where=f"rows {', '.join(part.row_ids[:3])}",
                    remedy="choose other targets: what is trained must act on the output",
                )
            if output.count:
                (output.total / max(1, count)).backward()
            made.append((output.total.detach(), output.row_losses, output.row_counts))
            rows += part.row_ids
    grads = [weight.grad for weight in weights if weight.grad is not None]
    norm = get_total_norm(grads) if grads else torch.zeros(())
    if not made:
        return StepResult(), norm
    total, size = float(torch.stack([part[0].double() for part in made]).sum()), float(norm)
    counts = torch.cat([part[2] for part in made])
    means = torch.cat([part[1] for part in made]) / counts.clamp(min=1)
    return StepResult(total, count, size, rows, [round(m, 6) for m in means.tolist()], counts.long().tolist()), norm


def _refuse_not_finite(loop: Loop, weights: Sequence[nn.Parameter], found: StepResult) -> None:
    """Weights, loss and gradient, before the optimizer touches anything."""
    refuse_bad_weights(loop, weights)
    bad = "the loss" if not math.isfinite(found.total) else ""
    bad = bad or ("the gradient" if not math.isfinite(found.grad_norm) else "")
    if not bad:
        return
    loop.optimizer.zero_grad(set_to_none=True)
    worst = [row for row, mean in zip(found.rows, found.row_means, strict=True) if not math.isfinite(mean)]
    raise Diverged(
        f"{bad} is not finite at step {loop.state.step + 1}, before it was applied",
        where=shown(worst or found.rows),
        remedy=REMEDY,
    )


def refuse_bad_weights(loop: Loop, weights: Sequence[nn.Parameter]) -> None:
    """A step with finite gradients can still throw a weight out of its number format."""
    largest = get_total_norm([weight.detach() for weight in weights], math.inf) if weights else torch.zeros(())
    if math.isfinite(float(largest)):
        return
    loop.optimizer.zero_grad(set_to_none=True)
    raise Diverged(f"a weight is not finite after step {loop.state.step}", where=shown(loop.last_rows), remedy=REMEDY)


def shown(rows: Sequence[str]) -> str:
    """At most eight row ids."""
    return f"rows {', '.join(rows[:8])}{' …' if len(rows) > 8 else ''}"


def _spike(
    loop: Loop, group: Sequence[Batch], found: StepResult, limit: float, weights: Sequence[nn.Parameter]
) -> StepResult:
    """Tell it and act by policy. The step counts; what it does differs."""
    state, policy = loop.state, loop.settings.spikes
    worst = spikes.culprits(found.row_means, found.rows, limit)
    loop.emit("spike", step=state.step + 1, loss=found.loss, limit=limit, rows=worst[:8], policy=policy)
    if policy == "stop":
        loop.optimizer.zero_grad(set_to_none=True)
        raise Diverged(
            f"the loss jumped to {found.loss:.3f} at step {state.step + 1} (limit {limit:.3f})",
            where=shown(worst),
            remedy="look at these rows, or lower train.lr; the last good checkpoint is kept",
        )
    if policy == "record":
        state.recent = [*state.recent, found.loss][-spikes.WINDOW :]
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        _apply(loop, weights, norm)
        return found
    loop.optimizer.zero_grad(set_to_none=True)
    if policy == "rollback":
        loop.roll_back()
        return found
    state.skipped = sorted({*state.skipped, *worst})
    left = spikes.without(group, state.skipped)
    result, norm = _accumulate_in_memory(loop, left, weights)
    _refuse_not_finite(loop, weights, result)
    if result.count:
        _apply(loop, weights, norm)
    return result


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up (CUDA's, the CPU's, or Python's)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))


def _halve(loop: Loop, group: Sequence[Batch]) -> None:
    """Cut each micro-batch into twice as many parts; the sum over the group stays the same."""
    loop.optimizer.zero_grad(set_to_none=True)
    if all(len(batch.row_ids) <= loop.state.split for batch in group):
        raise OutOfResource(
            f"one row does not fit into memory ({max(max(batch.lengths) for batch in group)} tokens)",
            where="data.max_length",
            remedy="lower data.max_length, or set train.activation_checkpointing: true",
        )
    loop.state.split *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    loop.emit(
        "warning",
        what=f"out of memory: micro-batches are cut into {loop.state.split} parts",
        where=f"step {loop.state.step + 1}",
        remedy="the result stays the same; set train.micro_tokens lower",
    )
