"""The one loop. It knows a model with named weights, batches, a loss and a validate function; nothing else.

    for each group of micro-batches (= one optimizer step):
        gradient = Σ total / Σ count over the whole group      (equal to one big batch)
        finite? clip, step, count; sometimes validate, sometimes save

A run that was stopped anywhere continues bit for bit: all randomness of a step is derived from (seed, step), the
cursor is (epoch, group), the logs go back to the checkpoint's offsets, and what was due after a step (`settled`)
is made up for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.core import signals
from luthier.core.errors import Diverged, LuthierError, OutOfResource, StopRequested
from luthier.core.events import Emit, silent
from luthier.core.resources import memory_limit
from luthier.core.seeding import derive, seed_everything
from luthier.engine.batch import Batch
from luthier.train import early_stop, keeping, optim
from luthier.train.checkpoint import Checkpoints
from luthier.train.loss import LossOutput
from luthier.train.settings import TrainSettings
from luthier.train.state import TrainState
from luthier.train.step import Dropped, StepResult, is_out_of_memory, refuse_bad_weights, take_step

BEST_TOLERANCE = 1e-4
"""Relative difference that the restored best weights may show against their recorded metric (rounding only)."""


class Trainable(Protocol):
    """What the loop needs of a model."""

    def parameters_by_name(self) -> Mapping[str, nn.Parameter]: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


class BatchSource(Protocol):
    """Groups of micro-batches, deterministic in the epoch."""

    def steps(self, epoch: int) -> int: ...
    def groups(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]: ...


@dataclass
class Loop:
    """Everything that one training holds; `fit` is its front door."""

    model: Trainable
    batches: BatchSource
    loss: Callable[[Batch], LossOutput]
    settings: TrainSettings
    total_steps: int
    checkpoints: Checkpoints | None
    validate: Callable[[], Mapping[str, float]] | None
    emit: Emit
    seed: int
    on_rows: Callable[[dict[str, Any]], None] | None
    optimizer: torch.optim.Optimizer
    state: TrainState = field(default_factory=TrainState)
    last_rows: list[str] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = None
    """The best weights, in memory, where there are no checkpoints."""

    def run(self) -> TrainState:
        """Train to the end, or raise Interrupted with everything saved."""
        state = self.state
        try:
            with signals.deferred():
                if state.step == 0 and not state.history and self._validates():
                    self._evaluate()
                if not state.settled:
                    self._settle()
                while state.step < self.total_steps and not state.finished:
                    self._epoch()
                return self._finish()
        except StopRequested:
            raise
        except BaseException:
            if self.checkpoints is not None:
                with suppress(LuthierError, OSError):
                    self.checkpoints.join()
            raise

    def _epoch(self) -> None:
        """The rest of the present epoch."""
        state, before = self.state, self.state.step
        for group in self.batches.groups(state.epoch, state.group):
            self._one(group)
            if state.finished or state.step >= self.total_steps:
                return
        if state.group == 0 and state.step == before:
            raise LuthierError(f"epoch {state.epoch} has no batches", where="data.train", remedy="add training rows")
        state.epoch, state.group, state.settled = state.epoch + 1, 0, False
        self._settle()

    def _one(self, group: list[Batch]) -> None:
        state, settings = self.state, self.settings
        if signals.asked():
            keeping.interrupt(self)
        began = time.perf_counter()
        self.model.train()
        rate = optim.set_rate(self.optimizer, optim.rate(settings.schedule, state.step, self.total_steps))
        try:
            result = take_step(self, group)
        except Dropped:
            keeping.interrupt(self)
        state.step += 1
        state.group += 1
        state.settled = False
        self.last_rows = result.rows
        self._note(group, result, rate, time.perf_counter() - began)
        self._settle()

    def _note(self, group: list[Batch], result: StepResult, rate: float, seconds: float) -> None:
        state = self.state
        tokens = sum(len(batch.input_ids) for batch in group)
        state.supervised_tokens += result.count
        state.tokens += tokens
        state.loss_sum += result.total
        self.emit(
            "train",
            step=state.step,
            epoch=state.epoch,
            loss=result.loss,
            lr=rate,
            grad_norm=result.grad_norm,
            supervised_tokens=result.count,
            tokens=tokens,
            seconds=round(seconds, 4),
            tokens_per_s=round(tokens / max(seconds, 1e-9), 1),
            memory_mb=memory_mb(),
            left_s=round(seconds * (self.total_steps - state.step), 1),
        )
        if self.on_rows is not None:
            self.on_rows(
                {
                    "step": state.step,
                    "epoch": state.epoch,
                    "rows": result.rows,
                    "loss": result.row_means,
                    "tokens": result.row_counts,
                }
            )

    def _validates(self) -> bool:
        return self.validate is not None and self.settings.evaluate_every != "never"

    def _settle(self) -> None:
        """Evaluate and save where it is due after this step; does nothing twice."""
        state = self.state
        if self._due(self.settings.evaluate_every) and self._validates():
            self._evaluate()
        if self._due(self.settings.save_every) and not state.finished:
            keeping.save(self)
        state.settled = True

    def _due(self, every: int | str) -> bool:
        if isinstance(every, int):
            return self.state.step % every == 0
        return every == "epoch" and self.state.group == 0

    def _evaluate(self) -> None:
        """Measure once at this step, judge, keep the best."""
        state, stop = self.state, self.settings.early_stop
        if state.history and state.history[-1]["step"] == state.step:
            return
        metric = stop.metric if stop else "loss"
        refuse_bad_weights(self, list(self.model.parameters_by_name().values()))
        measured = self._measure(metric)
        if not math.isfinite(measured[metric]):
            raise Diverged(f"validation {metric} is {measured[metric]} at step {state.step}", remedy="lower train.lr")
        record = {name: value if math.isfinite(value) else None for name, value in measured.items()}
        state.history.append({"step": state.step, **record})
        self.emit("validate", step=state.step, epoch=state.epoch, **record)
        verdict = early_stop.judge([past[metric] for past in state.history], stop, metric)
        best = state.history[verdict.best]
        is_best = best["step"] == state.step
        if is_best:
            state.best_step, state.best_metric = state.step, best[metric]
        if verdict.stop:
            state.finished, state.reason = True, "early_stop"
            self.emit("early_stop", step=state.step, reason=verdict.reason)
        if is_best:
            keeping.save_best(self)

    def _measure(self, metric: str) -> dict[str, float]:
        """What `validate` gives. A signal throws it away: it can be made again."""
        assert self.validate is not None
        self.model.eval()
        seed_everything(derive(self.seed, "validate", self.state.step))
        try:
            with signals.immediate(), torch.no_grad():
                measured = {name: float(value) for name, value in self.validate().items()}
        except StopRequested:
            if signals.insisted():
                raise
            keeping.interrupt(self)
        if metric not in measured:
            raise LuthierError(
                f"validation does not measure {metric!r}",
                where="train.early_stop.metric",
                remedy=f"one of {', '.join(sorted(measured))}",
            )
        return measured

    def _finish(self) -> TrainState:
        state = self.state
        if self._validates():
            self._evaluate()
        if not state.finished:
            state.finished, state.reason = True, "done"
        keeping.save(self)
        return self.conclude()

    def conclude(self) -> TrainState:
        """Restore the best weights and measure them again: they must give the recorded number."""
        state = self.state
        keeping.restore_best(self)
        if self._validates() and state.best_metric is not None:
            metric = self.settings.early_stop.metric if self.settings.early_stop else "loss"
            again = self._measure(metric)[metric]
            if not math.isclose(again, state.best_metric, rel_tol=BEST_TOLERANCE, abs_tol=BEST_TOLERANCE):
                raise LuthierError(
                    f"the restored best weights give {metric} {again:.6f}, recorded was {state.best_metric:.6f}",
                    where=f"step {state.best_step}",
                    remedy="this is a fault of luthier; keep the run directory",
                )
        self.model.eval()
        self.emit(
            "finished",
            reason=state.reason,
            step=state.step,
            best_step=state.best_step,
            best_metric=state.best_metric,
            mean_loss=state.mean_loss,
        )
        return state

    def roll_back(self) -> None:
        """Weights and optimizer of the last regular checkpoint; the data goes on."""
        keeping.roll_back(self)


def fit(
    model: Trainable,
    batches: BatchSource,
    loss: Callable[[Batch], LossOutput],
    *,
    settings: TrainSettings,
    lr: float,
    total_steps: int,
    checkpoints: Checkpoints | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    emit: Emit = silent,
    resume: bool = False,
    seed: int = 0,
    on_rows: Callable[[dict[str, Any]], None] | None = None,
    multipliers: Mapping[str, float] | None = None,
) -> TrainState:
    """Train `model` and leave its best weights in it.

    `lr` is the peak rate; `multipliers` (weight name → factor) change it for single weights (LoRA+). Raises
    Diverged (nothing non-finite is ever saved), Interrupted (saved; the same call continues), OutOfResource.
    With `resume`, the newest whole checkpoint is taken up where there is one.
    """
    optimizer = optim.build(settings, model.parameters_by_name(), lr, multipliers)
    loop = Loop(model, batches, loss, settings, total_steps, checkpoints, validate, emit, seed, on_rows, optimizer)
    try:
        if checkpoints is not None:
            keeping.require_space(loop)
            if resume and keeping.take_up(loop) and loop.state.finished:
                with signals.deferred():
                    return loop.conclude()
        return loop.run()
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfResource(
            f"memory is exhausted after step {loop.state.step}",
            where=memory_limit(),
            remedy="lower train.micro_tokens or data.max_length; the same command then continues",
        ) from None


def memory_mb() -> float:
    """Peak of the accelerator, else the resident memory of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    import resource

    import psutil

    try:
        return round(psutil.Process().memory_info().rss / 2**20, 1)
    except OSError:  # no file left to open: the peak is told without one
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
