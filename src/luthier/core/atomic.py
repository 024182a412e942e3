"""Writing that cannot leave half a file: staging name → fsync → rename → fsync of the folder.

After a crash the target is absent, the old version, or the new version, never a mixture.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.core.resources import told_as_resource

STAGING_PREFIX = ".staging-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, durably: their names are on disk before anything inside is."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        fsync_folder(place.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Atomically replace `path` by `data`."""
    staged = path.with_name(f"{STAGING_PREFIX}{os.getpid()}-{path.name}")
    with told_as_resource(path, len(data)):
        make_folder(path.parent)
        try:
            with open(staged, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(staged, path)
        finally:
            forget(staged)
        fsync_folder(path.parent)


def forget(staged: Path) -> None:
    """Remove a staged file or folder; a disk that refuses even this must not hide why the writing failed."""
    if staged.is_dir():
        shutil.rmtree(staged, ignore_errors=True)
    else:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Atomically replace `path` by UTF-8 text (lone surrogates are escaped, never fatal)."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Atomically replace `path` by readable JSON. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Give a staging folder beside `target`; on success fsync all of it and rename, on failure remove it.

    An existing `target` is exchanged with the new one in a single step of the kernel (renameat2), so there is
    no moment without a whole folder under the public name. Where the file system cannot exchange, the old one
    is moved aside first; `recover` puts it back after a crash between the two renames.
    """
    staged = target.with_name(f"{STAGING_PREFIX}{os.getpid()}-{target.name}")
    with told_as_resource(target), _staged(target, staged):
        yield staged


@contextmanager
def _staged(target: Path, staged: Path) -> Iterator[None]:
    make_folder(target.parent)
    remove_staging(target)
    staged.mkdir()
    try:
        yield
        for path in sorted(staged.rglob("*"), reverse=True):
            fsync_folder(path)
        fsync_folder(staged)
        old = target.with_name(f"{STAGING_PREFIX}old-{target.name}")
        if not target.exists():
            os.replace(staged, target)
        elif not exchange(staged, target):
            os.replace(target, old)
            try:
                os.replace(staged, target)
            except OSError:
                os.replace(old, target)
                raise
        fsync_folder(target.parent)
        forget(old)
    finally:
        forget(staged)


def remove_staging(target: Path) -> None:
    """Remove what a killed writer of `target` left beside it, after putting an old version back if need be."""
    recover(target)
    ours = re.compile(rf"{re.escape(STAGING_PREFIX)}(\d+|old)-{re.escape(target.name)}")
    for name in os.listdir(target.parent):
        if ours.fullmatch(name):
            shutil.rmtree(target.parent / name, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes were staging directly in `folder`; that of living ones stays."""
    for name in os.listdir(folder):
        found = re.match(rf"{re.escape(STAGING_PREFIX)}(\d+)-", name)
        if found and not _lives(int(found[1])):
            forget(folder / name)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def recover(target: Path) -> None:
    """Put a folder back that a crash caught between being moved aside and being replaced."""
    old = target.with_name(f"{STAGING_PREFIX}old-{target.name}")
    if old.is_dir() and not target.exists():
        os.replace(old, target)


def exchange(first: Path, second: Path) -> bool:
    """Swap two existing paths in one step. False where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)
