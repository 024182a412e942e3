"""Work on files that may be hostile, in a child process under limits of the operating system.

    run_limited("luthier.models.gate_child:inspect", {"template": text}, seconds=2, memory_mb=512) -> Outcome

The child sees no environment, reads its payload from stdin and answers one JSON line; what it needs is imported
before the limits begin, so that they bound the hostile part alone. A hang, a crash (also of a Rust or C library),
a BaseException and endless memory all end as an Outcome that says so, while this process goes on.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import OutOfResource

_BOOT = (
    "import sys, json\n"
    "asked = json.loads(sys.stdin.buffer.readline())\n"
    "sys.path[:] = asked['path']\n"
    "from luthier.core.limits import child\n"
    "child(asked)\n"
)
MOST_ANSWER = 1 << 20
START_SECONDS = 30.0
"""What starting the interpreter and importing may take on a busy machine, beside the limit for the work."""


@dataclass(frozen=True)
class Outcome:
    """`value` where the work was done; else `reason` in words, and the last `stage` that the work told."""

    value: Any = None
    reason: str = ""
    stage: str = ""

    @property
    def ok(self) -> bool:
        """Whether the work came to its end."""
        return not self.reason


def run_limited(target: str, payload: Any, *, seconds: float = 2.0, memory_mb: int = 512) -> Outcome:
    """Call `module:function(payload, tell)` in a child. CPU seconds and megabytes are those of the call itself."""
    asked = {
        "path": [entry for entry in sys.path if entry],
        "target": target,
        "seconds": seconds,
        "memory_mb": memory_mb,
        "payload": payload,
    }
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    try:
        child_process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=Path(sys.executable).anchor,
            start_new_session=True,
        )
    except OSError as error:
        raise OutOfResource(
            f"no process can be started: {error.strerror}", remedy="raise the limit of processes"
        ) from None
    try:
        text, _ = child_process.communicate(json.dumps(asked).encode() + b"\n", START_SECONDS + 2 * seconds)
    except subprocess.TimeoutExpired:
        child_process.kill()
        text, _ = child_process.communicate()
        return Outcome(reason=f"it does not end within {seconds:g} s", stage=_stage(text))
    finally:
        if child_process.poll() is None:
            child_process.kill()
            child_process.wait()
    return _outcome(text[:MOST_ANSWER], child_process.returncode, seconds, memory_mb)


def _lines(text: bytes) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def _stage(text: bytes) -> str:
    return next((line["stage"] for line in reversed(_lines(text)) if "stage" in line), "")


def _outcome(text: bytes, code: int, seconds: float, memory_mb: int) -> Outcome:
    for line in _lines(text):
        if "value" in line:
            return Outcome(line["value"])
        if "failed" in line:
            reason = f"it needs more than {memory_mb} MB" if line["failed"] == "MemoryError" else line["failed"]
            return Outcome(reason=reason, stage=_stage(text))
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome(reason=f"it takes more than {seconds:g} s of computing", stage=_stage(text))
    if code < 0:
        return Outcome(reason=f"it crashes its reader ({signal.Signals(-code).name})", stage=_stage(text))
    return Outcome(reason=f"its reader gave up (code {code})", stage=_stage(text))


def child(asked: dict[str, Any]) -> None:
    """What runs in the child process."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    sys.stdout = sys.stderr

    def say(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    module, function = asked["target"].split(":")
    work: Callable[[Any, Callable[[str], None]], Any] = getattr(importlib.import_module(module), function)
    _limit(asked["seconds"], asked["memory_mb"])
    try:
        say(value=work(asked["payload"], lambda stage: say(stage=stage)))
    except MemoryError:
        say(failed="MemoryError")
    except BaseException as error:  # a Rust panic is no Exception
        say(failed=f"{type(error).__name__}: {str(error)[:300]}")
    os._exit(0)


def _limit(seconds: float, memory_mb: int) -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + (memory_mb << 20)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    cpu = math.ceil(used + seconds)
    for name, value in (
        (resource.RLIMIT_AS, (most, most)),
        (resource.RLIMIT_CPU, (cpu, cpu + 1)),
        (resource.RLIMIT_FSIZE, (0, 0)),
        (resource.RLIMIT_CORE, (0, 0)),
    ):
        resource.setrlimit(name, value)
