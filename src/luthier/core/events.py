"""Events: everything that happens is said once; console, events.jsonl and studio are listeners.

A record is a flat JSON object with `kind` and `time`. Fields in TIMING are the only ones that may differ
between an interrupted-and-resumed run and an undisturbed one.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.core.atomic import fsync_folder
from luthier.core.resources import told_as_resource

Listener = Callable[[dict[str, Any]], None]
Emit = Callable[..., None]
"""`emit("train", step=3, loss=1.2)`: the seam that rooms are given; they never print."""

TIMING = frozenset({"time", "seconds", "tokens_per_s", "memory_mb", "left_s"})


class Emitter:
    """Fans records out to listeners; is itself the `emit` callable."""

    def __init__(self, *listeners: Listener):
        self.listeners = list(listeners)

    def __call__(self, kind: str, **fields: Any) -> None:
        record = {"kind": kind, "time": round(time.time(), 3), **fields}
        for listener in self.listeners:
            listener(record)


class JsonLines:
    """Appends records to a file, one a line, unbuffered. `offset()` lets a checkpoint remember the
    place, `truncate()` takes a resumed log back to it, so that each step stands there once."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with told_as_resource(path):
            self._handle = open(path, "ab", buffering=0)  # noqa: SIM115
        self._began = self._handle.tell()
        self._named = False

    def __call__(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, ensure_ascii=False, default=str)
        self._write(text.encode("utf-8", "backslashreplace") + b"\n")

    def _write(self, data: bytes) -> None:
        with told_as_resource(self.path, len(data)):
            while data:
                data = data[self._handle.write(data) or 0 :]

    def offset(self) -> int:
        """Bytes written so far."""
        return self._handle.tell()

    def truncate(self, offset: int) -> None:
        """Forget everything after `offset` bytes."""
        self._handle.truncate(offset)
        self._handle.seek(offset)

    def sync(self) -> None:
        """Make what was written durable, the name too: a checkpoint's offset must be found after a power cut."""
        os.fsync(self._handle.fileno())
        if os.fstat(self._handle.fileno()).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the log was deleted while it was written", str(self.path))
        if not self._named:
            fsync_folder(self.path.parent)
            self._named = True

    def restart(self) -> None:
        """Forget what earlier processes wrote into the file, keep what this one said."""
        if self._began:
            mine = self.path.read_bytes()[self._began :]
            self.truncate(0)
            self._write(mine)
            self._began = 0

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def silent(kind: str, **fields: Any) -> None:
    """An emit that nobody listens to."""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a torn last line (killed while writing) is dropped."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
