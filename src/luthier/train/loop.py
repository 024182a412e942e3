"""The one loop. It knows a model with named weights, batches, a loss and a validate function; nothing else.

    for each group of micro-batches (= one optimizer step):
        gradient = Σ total / Σ count over the whole group      (equal to one big batch)
        finite? clip, step, count; sometimes validate, sometimes save

A run that was stopped anywhere continues bit for bit: dropout's random stream is derived from (seed, step), the
cursor is (epoch, group), the logs go back to the checkpoint's offsets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.core import signals
from luthier.core.errors import Interrupted, LuthierError
from luthier.core.events import Emit
from luthier.core.seeding import derive
from luthier.engine.batch import Batch
from luthier.train import early_stop, optim
from luthier.train.checkpoint import Checkpoints, optimizer_tensors, restore_optimizer
from luthier.train.loss import LossOutput
from luthier.train.settings import TrainSettings
from luthier.train.state import TrainState
from luthier.train.step import StepResult, take_step

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
    lr: float
    total_steps: int
    checkpoints: Checkpoints | None
    validate: Callable[[], Mapping[str, float]] | None
    emit: Emit
    seed: int
    on_rows: Callable[[dict[str, Any]], None] | None
    optimizer: torch.optim.Optimizer
    state: TrainState = field(default_factory=TrainState)
    saved_at: int = -1

    def run(self) -> TrainState:
        """Train to the end, or raise Interrupted with everything saved."""
        state = self.state
        if state.step == 0 and not state.history and self.validate is not None and self._validates():
            self._evaluate()
        while state.step < self.total_steps and not state.finished:
            for group in self.batches.groups(state.epoch, state.group):
                self._one(group)
                if state.finished or state.step >= self.total_steps:
                    break
            else:
                state.epoch, state.group = state.epoch + 1, 0
                self._end_of_epoch()
        return self._finish()

    def _one(self, group: list[Batch]) -> None:
        state, settings = self.state, self.settings
        began = time.perf_counter()
        self.model.train()
        torch.manual_seed(derive(self.seed, "step", state.step))
        rate = optim.set_rate(self.optimizer, optim.rate(settings.schedule, state.step, self.total_steps))
        result = take_step(self, group)
        state.step += 1
        state.group += 1
        self._note(group, result, rate, time.perf_counter() - began)
        if signals.asked():
            self._interrupt()
        if isinstance(settings.evaluate_every, int) and state.step % settings.evaluate_every == 0:
            self._evaluate()
        if isinstance(settings.save_every, int) and state.step % settings.save_every == 0:
            self._save()

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
            loss=result.total / max(1, result.count),
            lr=rate,
            grad_norm=result.grad_norm,
            supervised_tokens=result.count,
            tokens=tokens,
            seconds=round(seconds, 4),
            tokens_per_s=round(tokens / max(seconds, 1e-9), 1),
            memory_mb=_memory(),
            left_s=round(seconds * (self.total_steps - state.step), 1),
        )
        if self.on_rows is not None:
            self.on_rows(
                {
                    "step": state.step,
                    "epoch": state.epoch,
                    "rows": [row for batch in group for row in batch.row_ids],
                    "loss": result.row_means,
                    "tokens": result.row_counts,
                }
            )

    def _validates(self) -> bool:
        return self.settings.evaluate_every != "never"

    def _end_of_epoch(self) -> None:
        if self.settings.evaluate_every == "epoch":
            self._evaluate()
        if self.settings.save_every == "epoch" and not self.state.finished:
            self._save()

    def _evaluate(self) -> None:
        if self.validate is None:
            return
        state, stop = self.state, self.settings.early_stop
        metric = stop.metric if stop else "loss"
        self.model.eval()
        with torch.no_grad():
            measured = {name: float(value) for name, value in self.validate().items()}
        if metric not in measured:
            raise LuthierError(
                f"validation does not measure {metric!r}",
                where="train.early_stop.metric",
                remedy=f"one of {', '.join(sorted(measured))}",
            )
        state.history.append({"step": state.step, **measured})
        self.emit("validate", step=state.step, epoch=state.epoch, **measured)
        verdict = early_stop.judge([record[metric] for record in state.history], stop, metric)
        best = state.history[verdict.best]
        if best["step"] == state.step:
            state.best_step, state.best_metric = state.step, best[metric]
            self._save()
            if self.checkpoints is not None:
                self.checkpoints.mark_best(state.step, best[metric])
        if verdict.stop:
            state.finished, state.reason = True, "early_stop"
            self.emit("early_stop", step=state.step, reason=verdict.reason)

    def _save(self) -> None:
        if self.checkpoints is None or self.settings.save_every == "never" and not self.state.finished:
            if self.checkpoints is None or self.state.best_step != self.state.step:
                return
        if self.saved_at == self.state.step and not self.state.finished:
            return
        tensors, numbers = optimizer_tensors(self.optimizer)
        self.emit("checkpoint", step=self.state.step)
        self.checkpoints.save(
            self.state.step, self.model.state(), tensors, {"train": self.state.as_json(), "optimizer": numbers}
        )
        self.saved_at = self.state.step

    def _interrupt(self) -> None:
        name = signals.asked()
        if self.checkpoints is not None:
            tensors, numbers = optimizer_tensors(self.optimizer)
            self.checkpoints.save(
                self.state.step, self.model.state(), tensors, {"train": self.state.as_json(), "optimizer": numbers}
            )
        raise Interrupted(f"stopped by {name} after step {self.state.step}", remedy="the same command continues")

    def _finish(self) -> TrainState:
        state = self.state
        last = state.history[-1]["step"] if state.history else -1
        if self.validate is not None and self._validates() and last != state.step:
            self._evaluate()
        if not state.finished:
            state.finished, state.reason = True, "done"
        self._save()
        self._restore_best()
        self.emit(
            "finished",
            reason=state.reason,
            step=state.step,
            best_step=state.best_step,
            best_metric=state.best_metric,
            mean_loss=state.mean_loss,
        )
        return state

    def _restore_best(self) -> None:
        """Load the best weights and measure them again: they must give the recorded number."""
        state = self.state
        if self.checkpoints is None or self.validate is None or state.best_metric is None:
            return
        if state.best_step != state.step:
            self.model.load_state(self.checkpoints.load(state.best_step).weights)
        self.model.eval()
        metric = self.settings.early_stop.metric if self.settings.early_stop else "loss"
        with torch.no_grad():
            again = float(self.validate()[metric])
        if not math.isclose(again, state.best_metric, rel_tol=BEST_TOLERANCE, abs_tol=BEST_TOLERANCE):
            raise LuthierError(
                f"the restored best weights give {metric} {again:.6f}, recorded was {state.best_metric:.6f}",
                where=f"step {state.best_step}",
                remedy="this is a fault of luthier; keep the run directory",
            )


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
    emit: Emit,
    resume: bool = False,
    seed: int = 0,
    on_rows: Callable[[dict[str, Any]], None] | None = None,
    multipliers: Mapping[str, float] | None = None,
) -> TrainState:
    """Train `model` and leave its best weights in it.

    Raises Diverged (nothing non-finite ever reaches the weights), Interrupted (saved, the same call continues),
    OutOfResource. With `resume`, the newest whole checkpoint is taken up where there is one.
    """
    optimizer = optim.build(settings, model.parameters_by_name(), lr, multipliers)
    loop = Loop(model, batches, loss, settings, lr, total_steps, checkpoints, validate, emit, seed, on_rows, optimizer)
    if resume and checkpoints is not None:
        found = checkpoints.latest()
        if found is None:
            checkpoints.clear_logs()
        else:
            checkpoints.rewind_logs(found.state)
            model.load_state(found.weights)
            restore_optimizer(optimizer, found.optimizer, found.state["optimizer"])
            loop.state = TrainState(**found.state["train"])
            loop.saved_at = found.step
            if loop.state.finished:
                loop._restore_best()
                return loop.state
    return loop.run()


def _memory() -> float:
    import psutil

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(psutil.Process().memory_info().rss / 2**20, 1)
