"""The model thread under a watchdog: runs the engine, survives failed steps, tells whether it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from luthier.serve.engine import Engine
from luthier.serve.request import Request

ALIVE_WITHIN = 30.0
"""Seconds without a heartbeat after which the server is not ready (a long prompt chunk takes a few)."""


class Worker:
    """Owns the engine's thread. `submit` and `wake` are safe from any thread."""

    def __init__(self, build: Callable[[], Engine]):
        self._build = build
        self.engine = build()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.beat = time.monotonic()
        self.restarts = 0
        self._thread = threading.Thread(target=self._run, name="luthier-model", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self.engine.submit(request)
        self._wake.set()

    def wake(self) -> None:
        """Look at cancellations soon."""
        self._wake.set()

    @property
    def healthy(self) -> bool:
        """The thread lives and its heartbeat is fresh."""
        return self._thread.is_alive() and time.monotonic() - self.beat < ALIVE_WITHIN

    def revive(self) -> None:
        """Start a new thread where the old one ended (the watchdog calls this)."""
        if self._thread.is_alive() or self._stop.is_set():
            return
        self.restarts += 1
        lost = [*self.engine.running, *self.engine.waiting, *self.engine.inbox]
        self.engine = self._build()
        for request in lost:
            self.engine._finish(request, "error", error="the model thread ended; it was restarted")
        self._thread = threading.Thread(target=self._run, name="luthier-model", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads()))
        while not self._stop.is_set():
            self.beat = time.monotonic()
            if not self.engine.step():
                self._wake.wait(0.05 if not self.engine.idle else 0.5)
                self._wake.clear()

    def close(self, grace: float = 30.0) -> None:
        """Drain for at most `grace` seconds, then end."""
        until = time.monotonic() + grace
        while not self.engine.idle and time.monotonic() < until and self._thread.is_alive():
            time.sleep(0.05)
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=5)
