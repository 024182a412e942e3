"""Writing that cannot leave half a file: staging name → fsync → rename → fsync of the folder.

After a crash the target is absent, the old version, or the new version, never a mixture.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGING_PREFIX = ".staging-"


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Atomically replace `path` by `data`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{STAGING_PREFIX}{os.getpid()}-{path.name}")
    try:
        with open(staged, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Atomically replace `path` by UTF-8 text (lone surrogates are escaped, never fatal)."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Atomically replace `path` by readable JSON. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Give a staging folder beside `target`; on success fsync all of it and rename, on failure remove it.

    An existing `target` is replaced: it is moved aside first, so that there is no moment in which a
    half-written folder stands under the public name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f"{STAGING_PREFIX}{os.getpid()}-{target.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        for path in sorted(staged.rglob("*"), reverse=True):
            fsync_folder(path)
        fsync_folder(staged)
        old = target.with_name(f"{STAGING_PREFIX}old-{os.getpid()}-{target.name}")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.rename(target, old)
        os.rename(staged, target)
        fsync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
