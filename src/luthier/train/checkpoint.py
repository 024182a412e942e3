"""Checkpoints that are whole or absent: staging folder, fsync, sha256 manifest, rename.

    checkpoints/step-000042/  weights.safetensors  optimizer.safetensors  state.json  manifest.json
    checkpoints/best.json     the step with the best metric

Reading trusts nothing: a folder without a manifest, with another hash, a missing file or another format version
is skipped aloud, back to the last good one. Rotation never deletes the best or the newest.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.core import atomic
from luthier.core.errors import ModelError, OutOfResource, Problem
from luthier.core.events import Emit, JsonLines, silent
from luthier.core.fingerprint import of_file

FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})$")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


@contextmanager
def told_as_resource(where: Path) -> Iterator[None]:
    """A full, read-only or broken disk is exit 5 with the reason, not a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(where if where.exists() else where.parent).free >> 20
        raise OutOfResource(
            f"cannot write: {error.strerror} ({free} MB free)",
            where=str(where),
            remedy="free the space or the limit, then run the same command: nothing good was lost",
        ) from None
    except SafetensorError as error:
        raise OutOfResource(f"cannot write: {error}", where=str(where), remedy="free disk space") from None


class Checkpoints:
    """The checkpoints of a run directory."""

    def __init__(
        self,
        folder: Path,
        keep: int = 3,
        max_disk: str | None = None,
        fingerprints: Mapping[str, Any] | None = None,
        logs: Mapping[str, JsonLines] | None = None,
        emit: Emit = silent,
    ):
        self.folder, self.keep = folder, keep
        self.max_bytes = parse_size(max_disk) if max_disk else None
        self.fingerprints = dict(fingerprints or {})
        self.logs = dict(logs or {})
        self.emit = emit

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending (not yet verified)."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := _NAME.fullmatch(path.name)))

    def save(
        self, step: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Path:
        """Write one, then rotate. OutOfResource leaves the earlier ones untouched."""
        size = sum(t.numel() * t.element_size() for part in (weights, optimizer) for t in part.values())
        if self.max_bytes is not None and size > self.max_bytes:
            raise OutOfResource(f"one checkpoint takes {size >> 20} MB", where="train.max_disk", remedy="raise it")
        with told_as_resource(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
            with atomic.publish_folder(self.path(step)) as staged:
                _save_tensors(staged / "weights.safetensors", weights)
                _save_tensors(staged / "optimizer.safetensors", optimizer)
                offsets = {name: log.offset() for name, log in self.logs.items()}
                full = {**state, "format": FORMAT, "fingerprints": self.fingerprints, "logs": offsets}
                (staged / "state.json").write_text(json.dumps(full), "utf-8")
                hashes = {path.name: of_file(path) for path in sorted(staged.iterdir())}
                (staged / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}), "utf-8")
            self._rotate(step)
        return self.path(step)

    def mark_best(self, step: int, metric: float) -> None:
        """best.json; that checkpoint is never rotated away."""
        with told_as_resource(self.folder):
            atomic.write_json(self.folder / "best.json", {"step": step, "metric": metric})

    def best_step(self) -> int | None:
        """The step that best.json names, where its folder exists."""
        file = self.folder / "best.json"
        try:
            step = int(json.loads(file.read_text("utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return step if self.path(step).is_dir() else None

    def latest(self) -> Loaded | None:
        """The newest whole checkpoint; broken ones are told and skipped. None when there is none."""
        for step in reversed(self.steps()):
            problem = self.problem_of(step)
            if problem is None:
                return self.load(step)
            self.emit(
                "warning",
                what=f"checkpoint of step {step} is not whole: {problem}",
                where=str(self.path(step)),
                remedy="the one before is used",
            )
        return None

    def load(self, step: int) -> Loaded:
        """A checkpoint of this step, verified; ModelError when it is not whole."""
        if problem := self.problem_of(step):
            raise ModelError(f"checkpoint of step {step} is not whole: {problem}", where=str(self.path(step)))
        folder = self.path(step)
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return Loaded(
            step, load_file(folder / "weights.safetensors"), load_file(folder / "optimizer.safetensors"), state
        )

    def problem_of(self, step: int) -> str | None:
        """Why a checkpoint cannot be trusted, None if it can."""
        folder = self.path(step)
        try:
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            if manifest["format"] != FORMAT:
                return f"format {manifest['format']}, this luthier reads {FORMAT}"
            listed = dict(manifest["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"no readable manifest ({type(error).__name__})"
        needed = {"weights.safetensors", "optimizer.safetensors", "state.json"}
        if missing := needed - set(listed):
            return f"{', '.join(sorted(missing))} not in the manifest"
        for name, digest in listed.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if of_file(folder / name) != digest:
                return f"{name} has another sha256"
        return None

    def rewind_logs(self, state: Mapping[str, Any]) -> None:
        """Take the logs back to where they were when this state was saved: each step stands there once."""
        for name, log in self.logs.items():
            log.truncate(int(state.get("logs", {}).get(name, 0)))

    def clear_logs(self) -> None:
        """Start the logs again: nothing that they hold belongs to a checkpoint."""
        for log in self.logs.values():
            log.truncate(0)

    def _clean(self) -> None:
        for path in self.folder.glob(f"{atomic.STAGING_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _rotate(self, newest: int) -> None:
        kept = {newest, self.best_step()}
        others = [step for step in self.steps() if step not in kept]
        surplus = others[: max(0, len(others) + 1 - self.keep)]
        if self.max_bytes is not None:
            while sum(_size(self.path(step)) for step in self.steps() if step not in surplus) > self.max_bytes:
                rest = [step for step in others if step not in surplus]
                if not rest:
                    break
                surplus.append(rest[0])
        for step in surplus:
            shutil.rmtree(self.path(step), ignore_errors=True)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500MB`, `1.5 TB`."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not found:
        raise OutOfResource(f"{text!r} is not a size", where="train.max_disk", remedy="for example 2GB")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and plain numbers (its order of weights is stable)."""
    tensors, numbers = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().clone()
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**numbers, **tensors}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Problem]:
    """What differs between the fingerprints of a checkpoint and the present ones."""
    keys = dict.fromkeys([*before, *now])
    return [
        Problem(f"{key} is not what this run began with", where=key) for key in keys if before.get(key) != now.get(key)
    ]
