"""Checkpoints that are whole or absent: staging folder, fsync, sha256 manifest, rename.

    checkpoints/step-000042/  weights.safetensors  optimizer.safetensors  state.json  manifest.json
    checkpoints/best.json     the step with the best metric

Reading trusts nothing: a folder without a manifest, with another hash, a missing file or another format version
is skipped aloud, back to the last good one. Rotation never deletes the best, the newest, or one that is pinned.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier.core import atomic
from luthier.core.errors import Diverged, ModelError, OutOfResource
from luthier.core.events import Emit, JsonLines, silent
from luthier.core.fingerprint import of_file
from luthier.core.resources import parse_size, told_as_resource
from luthier.train import tensor_file
from luthier.train.background import Writer

FORMAT = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Older format → how its state becomes the next format's. Unknown formats are refused by number."""
FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
UNREADABLE, FOREIGN = "it cannot be read", "it has format"
_NAME = re.compile(r"step-(\d{6,})$")


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run directory. `keep` counts the newest ones; best and pinned come on top.

    `logs` are the files whose length is saved with each checkpoint. With `background`, files are written beside
    the training; what `save` is given must then be copies.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 3,
        max_disk: str | None = None,
        fingerprints: Mapping[str, Any] | None = None,
        logs: Mapping[str, JsonLines] | None = None,
        emit: Emit = silent,
        background: bool = False,
    ):
        self.folder, self.keep = folder, keep
        self.max_bytes = parse_size(max_disk) if max_disk else None
        self.fingerprints = dict(fingerprints or {})
        self.logs = dict(logs or {})
        self.emit = emit
        self.pinned: int | None = None
        """A step that rotation spares beside the best: where a rollback would go."""
        self._writer = Writer() if background else None

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending (not yet verified)."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := _NAME.fullmatch(path.name)))

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        best: float | None = None,
    ) -> Path:
        """Write one, name it the best if `best` (its metric) is given, then rotate.

        OutOfResource leaves the earlier ones untouched; in the background it is raised by the next call.
        """
        with told_as_resource(self.folder):
            for log in self.logs.values():
                log.sync()
        offsets = {name: log.offset() for name, log in self.logs.items()}
        full = {**state, "format": FORMAT, "fingerprints": self.fingerprints, "logs": offsets}
        text = json.dumps(full, allow_nan=False)

        def job() -> None:
            self._write(step, weights, optimizer, text)
            if best is not None:
                self.mark_best(step, best)
            self._remove(self._surplus(step))

        if self._writer is None:
            job()
        else:
            self._writer.submit(job)
        return self.path(step)

    def join(self) -> None:
        """Wait until the last checkpoint is on disk; raises what went wrong there."""
        if self._writer is not None:
            self._writer.join()

    def _write(self, step: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: str) -> None:
        size = bytes_of(weights) + bytes_of(optimizer) + len(state)
        with told_as_resource(self.folder, size):
            atomic.make_folder(self.folder)
            self._clean()
            self._make_room(step, size)
            _refuse_not_finite(step, {**weights, **optimizer})
            with atomic.publish_folder(self.path(step)) as staged:
                hashes = {
                    "weights.safetensors": tensor_file.write(staged / "weights.safetensors", weights),
                    "optimizer.safetensors": tensor_file.write(staged / "optimizer.safetensors", optimizer),
                    "state.json": sha256(state.encode()).hexdigest(),
                }
                (staged / "state.json").write_text(state, "utf-8")
                (staged / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}), "utf-8")

    def mark_best(self, step: int, metric: float) -> None:
        """best.json; that checkpoint is never rotated away."""
        with told_as_resource(self.folder):
            atomic.write_json(self.folder / "best.json", {"step": step, "metric": metric})

    def best_step(self) -> int | None:
        """The step that best.json names, where its folder exists."""
        step = self._best_named()
        return step if step is not None and self.path(step).is_dir() else None

    def _best_named(self) -> int | None:
        try:
            return int(json.loads((self.folder / "best.json").read_text("utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def latest(self) -> tuple[Loaded | None, list[str]]:
        """The newest whole checkpoint (None when there is none), and what is wrong with the newer ones."""
        self.join()
        if self.folder.is_dir():
            with told_as_resource(self.folder):
                for path in self.folder.glob(f"{atomic.STAGING_PREFIX}old-step-*"):
                    atomic.recover(self.folder / path.name.removeprefix(f"{atomic.STAGING_PREFIX}old-"))
        problems: list[str] = []
        for step in reversed(self.steps()):
            if problem := self.problem_of(step):
                problems.append(f"the checkpoint of step {step} is not whole: {problem}")
                continue
            found = self.load(step)
            if problem := self._without_best(found):
                problems.append(f"the checkpoint of step {step} is of no use without the best one: {problem}")
                continue
            return found, problems
        return None, problems

    def _without_best(self, found: Loaded) -> str | None:
        """Why a run cannot end from here: the best weights before it are gone, and no better ones came after it."""
        best = int(found.state.get("train", {}).get("best_step", -1))
        if best < 0 or best == found.step or (self._best_named() or 0) > found.step:
            return None
        return self.problem_of(best)

    def take_over(self, found: Loaded | None, best: int, metric: float | None) -> None:
        """Continue from here: what came later belongs to no run any more, and best.json names this state's best.

        Checkpoints that could not be read, or that another version wrote, are left where they are.
        """
        self.join()
        step = -1 if found is None else found.step
        kept = (UNREADABLE, FOREIGN)
        later = [other for other in self.steps() if other > step]
        self._remove([other for other in later if not (self.problem_of(other) or "").startswith(kept)])
        if best >= 0 and metric is not None and self._best_named() != best and self.problem_of(best) is None:
            self.mark_best(best, metric)

    def load(self, step: int) -> Loaded:
        """A checkpoint of this step, verified; ModelError when it is not whole."""
        self.join()
        if problem := self.problem_of(step):
            raise ModelError(
                f"the checkpoint of step {step} is not whole: {problem}",
                where=str(self.path(step)),
                remedy="delete this folder; the same command then goes on from the one before",
            )
        folder = self.path(step)
        state = json.loads((folder / "state.json").read_text("utf-8"))
        while state["format"] != FORMAT:
            state = MIGRATIONS[state["format"]](state)
        with told_as_resource(folder):
            weights, optimizer = (load_file(folder / f"{name}.safetensors") for name in ("weights", "optimizer"))
        return Loaded(step, weights, optimizer, state)

    def problem_of(self, step: int) -> str | None:
        """Why a checkpoint cannot be trusted, None if it can."""
        folder = self.path(step)
        try:
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            if manifest["format"] != FORMAT and manifest["format"] not in MIGRATIONS:
                return f"{FOREIGN} {manifest['format']}, this luthier reads {FORMAT}"
            listed = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
        except FileNotFoundError:
            return "it has no manifest"
        except OSError as error:
            return f"{UNREADABLE}: {error.strerror}"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return f"it has no readable manifest ({type(error).__name__})"
        if set(listed) != set(FILES):
            return f"its manifest lists {', '.join(sorted(listed))}"
        for name, digest in listed.items():
            try:
                if of_file(folder / name) != digest:
                    return f"{name} has another sha256"
            except FileNotFoundError:
                return f"{name} is missing"
            except OSError as error:
                return f"{UNREADABLE}: {name}: {error.strerror}"
        return None

    def rewind_logs(self, state: Mapping[str, Any]) -> list[str]:
        """Take the logs back to where they were when this state was saved: each step stands there once.

        Returns the names of logs that are shorter than they should be (somebody else cut them).
        """
        short = []
        for name, log in self.logs.items():
            offset = int(state.get("logs", {}).get(name, 0))
            if log.offset() < offset:
                short.append(name)
            else:
                log.truncate(offset)
        return short

    def restart_logs(self) -> None:
        """Nothing of an earlier process belongs to a checkpoint: the logs keep what this process said."""
        for log in self.logs.values():
            log.restart()

    def _clean(self) -> None:
        for path in self.folder.glob(f"{atomic.STAGING_PREFIX}*"):
            if path.name.startswith(f"{atomic.STAGING_PREFIX}old-step-"):
                atomic.recover(self.folder / path.name.removeprefix(f"{atomic.STAGING_PREFIX}old-"))
            atomic.forget(path)

    def _surplus(self, newest: int) -> list[int]:
        """What rotation deletes, oldest first."""
        spared = {newest, self.best_step(), self.pinned}
        others = [step for step in self.steps() if step not in spared]
        return others[: max(0, len(others) + 1 - self.keep)]

    def _make_room(self, step: int, need: int) -> None:
        """Delete the oldest until the new one fits into `max_disk` beside those that must stay."""
        if self.max_bytes is None:
            return
        present = [other for other in self.steps() if other != step or self.path(step).is_dir()]
        newest = max(present, default=None)
        spared = {newest, self.best_step(), self.pinned, step}
        loose = [other for other in present if other not in spared]
        used = {other: folder_bytes(self.path(other)) for other in present}
        need += 4096  # header and manifest
        while loose and sum(used.values()) + need > self.max_bytes:
            oldest = loose.pop(0)
            self._remove([oldest])
            del used[oldest]
        if sum(used.values()) + need > self.max_bytes:
            raise OutOfResource(
                f"a checkpoint of {need / 1e6:.1f} MB does not fit beside the {sum(used.values()) / 1e6:.1f} MB that "
                f"must stay (best and last good)",
                where="train.max_disk",
                remedy=f"raise it to {3 * need / 1e6 + 1:.0f}MB or more",
            )

    def _remove(self, steps: list[int]) -> None:
        """Out of sight first, so that no half-deleted folder ever stands under the name of a checkpoint."""
        for step in steps:
            gone = self.folder / f"{atomic.STAGING_PREFIX}gone-{step}"
            try:
                os.replace(self.path(step), gone)
            except OSError:
                continue
            shutil.rmtree(gone, ignore_errors=True)


def _refuse_not_finite(step: int, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Diverged(
                f"{name} is not finite after step {step}; it was not saved",
                where=f"step {step}",
                remedy="lower train.lr, or raise train.schedule.warmup; the last good checkpoint is kept",
            )


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the data of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def folder_bytes(folder: Path) -> int:
    """Bytes of the files directly in a folder."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def changed(before: Any, now: Any, path: str = "") -> list[str]:
    """Key paths that differ between the fingerprints of a checkpoint and the present ones."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [name for key in keys for name in changed(before.get(key), now.get(key), f"{path}.{key}".strip("."))]
    return [] if before == now else [path]


def refuse_changed_base(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """The weights in a checkpoint mean nothing on another base."""
    for name in ("weights", "tokenizer", "config"):
        old, new = (side.get("base", {}).get(name) for side in (before, now))
        if old and new and old != new:
            raise ModelError(
                f"the base model's {name} changed since this run began",
                where="model.path",
                remedy="restore the model folder, or take a new --run-dir",
            )
