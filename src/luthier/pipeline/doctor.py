"""Is this installation sound? Versions, extras, device, room and fonts. Writes nothing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "note", "wrong"]
Finding = dict[str, Any]
DISK_MB, MEMORY_MB = 500, 1500
"""Less free disk or memory than this is worth a note: the built-in demo takes 620 MB of memory."""


def examine(folder: Path) -> list[Finding]:
    """[{"what", "found", "status", "remedy"}]: `wrong` keeps luthier from working, `note` from some part of it."""
    return [*_libraries(), *_extras(), _torch(), _cores(), _memory(), _disk(folder), _font(), _offline()]


def _finding(what: str, found: Any, status: Status = "ok", remedy: str = "") -> Finding:
    return {"what": what, "found": str(found), "status": status, "remedy": remedy if status != "ok" else ""}


def _requirements(extra: str | None) -> Iterator[Any]:
    """What the installed package says that it needs, for the core (None) or one extra."""
    from packaging.requirements import Requirement

    for line in metadata.requires("luthier") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        core = marker is None or marker.evaluate({"extra": ""})
        if core if extra is None else not core and marker is not None and marker.evaluate({"extra": extra}):
            yield requirement


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> Iterator[Finding]:
    yield _finding("python", platform.python_version())
    for need in _requirements(None):
        found = _installed(need.name)
        fits = found is not None and need.specifier.contains(found, prereleases=True)
        line = f'pip install "{need.name}{need.specifier}"'
        yield _finding(need.name, found or "absent", "ok" if fits else "wrong", line)


def _extras() -> Iterator[Finding]:
    for extra in sorted({*(metadata.metadata("luthier").get_all("Provides-Extra") or [])} - {"dev"}):
        needs = list(_requirements(extra))
        versions = {need.name: _installed(need.name) for need in needs}
        missing = [name for name, version in versions.items() if version is None]
        old = [
            need.name
            for need in needs
            if (version := versions[need.name]) and not need.specifier.contains(version, prereleases=True)
        ]
        said = (
            f"without {', '.join(missing)}" if missing else f"another version of {', '.join(old)}" if old else "there"
        )
        fine = not missing and not old
        yield _finding(f"extra {extra}", said, "ok" if fine else "note", f'pip install "luthier[{extra}]"')


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken installation fails in any way: missing libraries, wrong glibc
        return _finding("torch starts", f"{type(error).__name__}: {error}"[:300], "wrong", "install torch again")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return _finding("device", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    built = torch.version.cuda
    if built and Path("/dev/nvidia0").exists():
        return _finding("device", "a GPU that torch cannot use", "note", f"the driver does not fit CUDA {built}")
    return _finding("device", "CPU")


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > usable:
        return _finding("cores", f"{usable}, OMP_NUM_THREADS={asked}", "note", f"OMP_NUM_THREADS={usable}")
    return _finding("cores", usable)


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 1e6
    return _finding("free memory", f"{free:,.0f} MB", "ok" if free > MEMORY_MB else "note", "close something")


def _disk(folder: Path) -> Finding:
    near = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(near).free / 1e6
    what = f"disk at {near}"
    if not os.access(near, os.W_OK):
        return _finding(what, "not writable", "wrong", "luthier run RECIPE --run-dir ELSEWHERE")
    return _finding(what, f"{free:,.0f} MB free", "ok" if free > DISK_MB else "note", "make room")


def _font() -> Finding:
    from luthier.report.plots import cjk_font

    found = cjk_font()
    remedy = "install a font such as Noto Sans CJK: without it the pictures show boxes for Chinese names"
    return _finding("Chinese font for pictures", found or "none", "ok" if found else "note", remedy)


def _offline() -> Finding:
    asked = os.environ.get("HF_HUB_OFFLINE", "") or os.environ.get("TRANSFORMERS_OFFLINE", "")
    off = asked.lower() in ("1", "true", "yes", "on")
    return _finding("model hub", "off by environment" if off else "asked only for hub ids")
