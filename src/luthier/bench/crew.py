"""The processes of the arms: started when they are needed, ended when memory would not hold them together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.bench.arms import KINDS
from luthier.core.errors import LuthierError

HERE = Path(__file__).parent
SPARE = 1.15
"""How much more than an arm was seen to take is kept free for it."""
FIRST = (4.0, 1e9)
"""Of an arm that nothing is known of: so many times the base, and so much more for libraries and activations."""


class Arm:
    """One process that waits for orders."""

    def __init__(self, name: str, folder: Path, python: str, threads: int):
        self.name = name
        own = name not in KINDS or not KINDS[name].peer
        what = ["-m", "luthier.bench.worker"] if own else [str(HERE / "peers" / "run.py")]
        count = str(threads)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed with the process
        self.process = subprocess.Popen(
            [python, *what, str(folder), name, count],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )

    def order(self, do: str, **more: Any) -> dict[str, Any]:
        """Give one order and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no word"])[-1]
            raise LuthierError(f"the arm {self.name} failed: {last}", where="bench", remedy="leave this arm out")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """Close its input and wait; a process that is slow to leave has already said all it had to."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.errors.close()


class Crew:
    """Arms by name. An arm waits in memory for its next turn only while the one at work has room beside it.

    `free` tells free bytes, or None where nobody knows: then one arm lives at a time, as on a GPU.
    """

    def __init__(
        self,
        folder: Path,
        pythons: Mapping[str, str],
        threads: int,
        base_bytes: float,
        free: Callable[[], float | None],
        start: Callable[..., Any] = Arm,
    ):
        self.folder, self.pythons, self.threads, self.free, self.make = folder, pythons, threads, free, start
        self.unknown = FIRST[0] * base_bytes + FIRST[1]
        self.alive: dict[str, Any] = {}
        self.peaks: dict[str, float] = {}
        self.ended_for_room = 0

    def order(self, name: str, do: str, **more: Any) -> dict[str, Any]:
        """Start the arm where it does not live, end others where it needs their room, and ask."""
        fresh = name not in self.alive
        self._make_room(name)
        if fresh:
            peer = KINDS[name].peer
            self.alive[name] = self.make(name, self.folder, self.pythons.get(peer, sys.executable), self.threads)
            if do == "go":
                self._ask(name, "warm")
        return self._ask(name, do, **more)

    def _ask(self, name: str, do: str, **more: Any) -> dict[str, Any]:
        arm = self.alive.pop(name)  # the last one used is the last to be ended
        self.alive[name] = arm
        found: dict[str, Any] = arm.order(do, **more)
        self.peaks[name] = max(self.peaks.get(name, 0.0), found.get("peak_rss_mb", 0.0) * (1 << 20))
        return found

    def _make_room(self, name: str) -> None:
        need = SPARE * (self.peaks.get(name) or max(self.peaks.values(), default=self.unknown))
        need -= resident(self.alive[name].process.pid) if name in self.alive else 0.0
        for other in [each for each in self.alive if each != name]:
            room = self.free()
            if room is not None and room >= need:
                return
            self.end(other)
            self.ended_for_room += 1

    def end(self, name: str) -> None:
        """One arm leaves."""
        if name in self.alive:
            self.alive.pop(name).end()

    def end_all(self) -> None:
        """All leave."""
        for name in list(self.alive):
            self.end(name)


def resident(pid: int) -> float:
    """Bytes that a process holds now; 0 where the system does not tell."""
    file = Path(f"/proc/{pid}/statm")
    try:
        return float(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0.0


def free_memory() -> float | None:
    """Bytes that can be taken without pushing others out, within the limit of a container; None: not told."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found = float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        return min(found, limit - float((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return found
