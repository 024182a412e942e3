"""One writer for a run directory: a lock file with pid and boot id, held by the kernel while the process lives.

`flock` decides (so a killed process never leaves a lock behind, and exactly one of many racers wins); the
content is for the message to the loser.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from luthier.core.errors import OutOfResource, RecipeError
from luthier.core.resources import told_as_resource


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
        with told_as_resource(self.path):
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # NFS without a lock daemon, and the like
                os.close(self._handle)
                raise OutOfResource(
                    f"this file system gives no locks: {os.strerror(error.errno or 0)}",
                    where=str(self.path.parent),
                    remedy="take a --run-dir on a local disk",
                ) from None
            holder = os.read(self._handle, 400).decode("utf-8", "replace").strip() or "another process"
            os.close(self._handle)
            raise RecipeError(
                f"this run directory is in use by {holder}",
                where=str(self.path.parent),
                remedy="wait for it, or take a new --run-dir",
            ) from None
        note = json.dumps({"pid": os.getpid(), "boot": boot_id(), "since": round(time.time())})
        with suppress(OSError):  # a full disk: the lock is held all the same, only the note is missing
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, note.encode(), 0)
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
        os.close(self._handle)
