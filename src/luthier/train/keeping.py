"""The loop and its checkpoints: saving, taking up, rolling back, being interrupted, the best weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

from luthier.core import signals
from luthier.core.errors import Interrupted, ModelError
from luthier.core.resources import require_space as require_free
from luthier.train import optimizer_state
from luthier.train.checkpoint import FOREIGN, Loaded, bytes_of, changed, refuse_changed_base
from luthier.train.state import TrainState
from luthier.train.step import refuse_bad_weights

if TYPE_CHECKING:
    from luthier.train.loop import Loop

HEADERS = 4096
"""Bytes of a checkpoint that are no tensors: headers, state, manifest (rounded)."""


def checkpoint_bytes(loop: Loop) -> int:
    """What one checkpoint will take on disk, before there is one."""
    weights = loop.model.parameters_by_name()
    return bytes_of(loop.model.state()) + optimizer_state.expected_bytes(loop.settings.optimizer, weights) + HEADERS


def require_space(loop: Loop) -> None:
    """Before the first step: there must be room for one more checkpoint, on disk and in `max_disk`."""
    assert loop.checkpoints is not None
    require_free(loop.checkpoints.folder, checkpoint_bytes(loop))


def _write(loop: Loop, best: float | None = None) -> None:
    assert loop.checkpoints is not None
    refuse_bad_weights(loop, list(loop.model.parameters_by_name().values()))
    tensors, numbers = optimizer_state.to_tensors(loop.optimizer)
    state = {"train": loop.state.as_json(), "optimizer": numbers, "environment": environment()}
    loop.checkpoints.pinned = loop.state.anchor if loop.settings.spikes == "rollback" else None
    loop.checkpoints.save(loop.state.step, loop.model.state(), tensors, state, best)


def save(loop: Loop) -> None:
    """A regular checkpoint of this step (once), or the final one."""
    state = loop.state
    if loop.checkpoints is None or (state.anchor == state.step and not state.finished):
        return
    _regular(loop)


def save_best(loop: Loop) -> None:
    """Keep the present weights as the best."""
    if loop.checkpoints is None:
        loop.best_weights = loop.model.state()
    else:
        _regular(loop, loop.state.best_metric)


def _regular(loop: Loop, best: float | None = None) -> None:
    assert loop.checkpoints is not None
    step = loop.state.step
    loop.state.anchor = step
    loop.emit("checkpoint", step=step, path=f"{loop.checkpoints.folder.name}/{loop.checkpoints.path(step).name}")
    _write(loop, best)


def interrupt(loop: Loop) -> NoReturn:
    """Save what is not saved yet, without a word in the log (an undisturbed run has none there), and stop."""
    state = loop.state
    if loop.checkpoints is not None:
        if state.step > 0 and state.anchor != state.step:
            _write(loop)
        loop.checkpoints.join()
    raise Interrupted(
        f"stopped by {signals.asked()} after step {state.step} of {loop.total_steps}",
        remedy="the same command continues",
    )


def take_up(loop: Loop) -> bool:
    """Continue from the newest whole checkpoint; False when there is none."""
    assert loop.checkpoints is not None
    found, problems = loop.checkpoints.latest()
    if foreign := [problem for problem in problems if FOREIGN in problem]:
        raise ModelError(
            foreign[0],
            where=str(loop.checkpoints.folder),
            remedy="continue with the version of luthier that wrote it, or delete that folder to go on from before",
        )
    if found is None:
        loop.checkpoints.restart_logs()
    else:
        refuse_changed_base(found.state.get("fingerprints", {}), loop.checkpoints.fingerprints)
        short = loop.checkpoints.rewind_logs(found.state)
        problems += [f"the log {name} is shorter than it was; its end is lost" for name in short]
        loop.model.load_state(found.weights)
        optimizer_state.restore(loop.optimizer, found.optimizer, found.state["optimizer"])
        loop.state = TrainState(**found.state["train"])
    loop.checkpoints.take_over(found, loop.state.best_step, loop.state.best_metric)
    for problem in problems:
        loop.emit("warning", what=problem, where=str(loop.checkpoints.folder), remedy="the one before is used")
    if found is not None:
        _tell_changes(loop, found)
    return found is not None


def environment() -> dict[str, Any]:
    """What rounding depends on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": device}


def _tell_changes(loop: Loop, found: Loaded) -> None:
    assert loop.checkpoints is not None
    before, now = found.state.get("environment", {}), environment()
    for key in changed(before, now):
        loop.emit(
            "warning",
            what=f"{key} was {before.get(key)}, is now {now.get(key)}",
            where=f"step {found.step}",
            remedy="the rest of the run is valid, but not bitwise that of an undisturbed run",
        )
    for key in changed(found.state.get("fingerprints", {}), loop.checkpoints.fingerprints):
        loop.emit(
            "warning", what=f"{key} is not what this run began with", where=f"step {found.step}", remedy="see lineage"
        )


def restore_best(loop: Loop) -> None:
    """Put the best weights into the model, where they are not those of the last step."""
    state = loop.state
    if loop.checkpoints is not None:
        loop.checkpoints.join()
        if state.best_step >= 0:
            loop.model.load_state(loop.checkpoints.load(state.best_step).weights)
    elif loop.best_weights is not None:
        loop.model.load_state(loop.best_weights)


def roll_back(loop: Loop) -> None:
    """Weights and optimizer of the last regular checkpoint; step and data go on. Without one the step is dropped."""
    if loop.checkpoints is None or loop.state.anchor < 0:
        loop.emit(
            "warning",
            what="there is no checkpoint to roll back to; the step was dropped",
            where=f"step {loop.state.step + 1}",
            remedy="set train.save_every",
        )
        return
    found = loop.checkpoints.load(loop.state.anchor)
    loop.model.load_state(found.weights)
    optimizer_state.restore(loop.optimizer, found.optimizer, found.state["optimizer"])
