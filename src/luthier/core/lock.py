"""One writer for a run directory: a lock file with pid and boot id, held by the kernel while the process lives.

`flock` decides (so a killed process never leaves a lock behind, and exactly one of many racers wins); the
content is for the message to the loser.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from luthier.core.errors import RecipeError


def boot_id() -> str:
    """Changes with every start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"


class RunLock:
    """`with RunLock(path):` holds the directory; RecipeError names the holder when somebody else does."""

    def __init__(self, path: Path):
        self.path = path
        self._handle = -1

    def __enter__(self) -> RunLock:
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._handle, 400).decode("utf-8", "replace").strip() or "another process"
            os.close(self._handle)
            raise RecipeError(
                f"this run directory is in use by {holder}",
                where=str(self.path.parent),
                remedy="wait for it, or take a new --run-dir",
            ) from None
        note = json.dumps({"pid": os.getpid(), "boot": boot_id(), "since": round(time.time())})
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, note.encode(), 0)
        return self

    def __exit__(self, *exc: object) -> None:
        os.ftruncate(self._handle, 0)
        os.close(self._handle)
