"""Disk and memory that run out are told as such (exit 5), with the need and the limit, never as a traceback."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.core.errors import OutOfResource, RecipeError

_LIMITS = {
    errno.EFBIG: ("RLIMIT_FSIZE", resource.RLIMIT_FSIZE),
    errno.EMFILE: ("RLIMIT_NOFILE", resource.RLIMIT_NOFILE),
}
_FULL = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENODEV,
    errno.ENXIO,
    errno.ESTALE,
    errno.EBUSY,
    errno.ETIMEDOUT,
}
"""What writing meets when the place is full, forbidden, broken or gone."""


def free_bytes(where: Path) -> int:
    """Free space of the file system that holds `where` (or its nearest existing parent)."""
    place = where.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def told_as_resource(where: Path, need: int = 0) -> Iterator[None]:
    """Inside, a full, read-only, forbidden or broken disk and a MemoryError become OutOfResource.

    `need` is the number of bytes that were to be written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _told(error, where, need) from None
    except MemoryError:
        raise OutOfResource(
            f"memory is exhausted ({memory_limit()})",
            where=str(where),
            remedy="lower train.micro_tokens or data.max_length",
        ) from None
    except Exception as error:
        number = _number_of(error)
        if number not in _FULL:
            raise
        raise _told(OSError(number, ""), where, need) from None


def memory_limit() -> str:
    """In words: how much memory this process may have."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "no limit is set" if limit == resource.RLIM_INFINITY else f"RLIMIT_AS is {limit >> 20} MB"


def _number_of(error: Exception) -> int:
    """errno of what a library that is not Python raises.

    Rust: `… I/O error: No space left on device (os error 28)`; torch: `unable to open file <…> in read-only mode: Too
    many open files (24)`, believed only if the words are those of that number.
    """
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):
        return int(found[1])
    found = re.search(r": ([^:]+) \((\d{1,3})\)$", text.splitlines()[0] if text else "")
    return int(found[2]) if found and os.strerror(int(found[2])) == found[1] else 0


def _told(error: OSError, where: Path, need: int) -> OutOfResource:
    number = error.errno or 0
    facts = [f"{need / 1e6:.1f} MB needed"] if need else []
    if number in _LIMITS:
        name, limit = _LIMITS[number]
        facts.append(f"{name} is {resource.getrlimit(limit)[0]}")
    else:
        try:
            facts.append(f"{free_bytes(where) / 1e6:.1f} MB free")
        except OSError:
            facts.append("the file system does not answer")
    return OutOfResource(
        f"cannot write: {os.strerror(number)} ({', '.join(facts)})",
        where=str(error.filename or where),
        remedy="mend the place or the limit, then run the same command: nothing good was lost",
    )


def require_space(where: Path, need: int) -> None:
    """OutOfResource now rather than in the middle of the work."""
    free = free_bytes(where)
    if free < need:
        raise OutOfResource(
            f"{need / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free",
            where=str(where),
            remedy="free space, or name a run directory on another disk",
        )


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500MB`, `1.5 TB` (1 KB = 1024 bytes)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not found:
        raise RecipeError(f"{text!r} is not a size", where="train.max_disk", remedy="for example 2GB")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))
