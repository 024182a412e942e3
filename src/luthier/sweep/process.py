"""One point as a process of its own: explicit thread counts, no shell, its output in a file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Processes:
    """Starts runs, and can stop them all: each then saves and ends as resumable."""

    def __init__(self, threads: int):
        self.threads = threads
        self.stopped = False
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen[bytes]] = set()

    def run(self, words: list[str], log: Path) -> int:
        """The exit code of `luthier WORDS`; 3 where the sweep was stopped before it began."""
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(self.threads))}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as out:
            with self._lock:
                if self.stopped:
                    return 3
                child = subprocess.Popen(
                    [sys.executable, "-m", "luthier.cli", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=environment,
                    start_new_session=True,
                )
                self._alive.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._alive.discard(child)

    def stop(self) -> None:
        """SIGTERM to every run, and no new ones."""
        with self._lock:
            self.stopped = True
            for child in self._alive:
                child.terminate()
