"""The model thread under a watchdog: runs the engine, survives failed steps, tells whether it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from luthier.serve.engine import Engine
from luthier.serve.request import Request, Token

STALLED_AFTER = 30.0
"""Seconds without a heartbeat after which the thread is given up (a prompt chunk of a large model takes a few)."""


class Worker:
    """Owns the engine's thread. `submit` and `wake` are safe from any thread."""

    def __init__(self, build: Callable[[], Engine], stalled_after: float = STALLED_AFTER):
        self._build = build
        self.stalled_after = stalled_after
        self.engine = build()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.beat = time.monotonic()
        self.restarts = 0
        self._thread = threading.Thread(target=self._run, name="luthier-model", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request."""
        engine = self.engine
        engine.submit(request)
        self._wake.set()
        if engine is not self.engine:  # it was replaced meanwhile: nobody looks into its inbox any more
            _lost(request)

    def wake(self) -> None:
        """Look at cancellations soon."""
        self._wake.set()

    @property
    def healthy(self) -> bool:
        """The thread lives and its heartbeat is fresh."""
        return self._thread.is_alive() and time.monotonic() - self.beat < self.stalled_after

    def revive(self) -> None:
        """A new engine and thread where the old thread ended or hangs (the watchdog calls this).

        A thread that hangs cannot be ended; should it wake up, it finds that it was replaced and ends.
        """
        if self.healthy or self._stop.is_set():
            return
        self.restarts += 1
        old, self.engine = self.engine, self._build()
        self.engine.counters = old.counters
        self.beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="luthier-model", daemon=True)
        self._thread.start()
        for request in [*old.running, *old.waiting, *old.inbox]:
            _lost(request)

    def _run(self) -> None:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads()))
        engine, own = self.engine, threading.current_thread()
        while not self._stop.is_set() and self._thread is own:
            self.beat = time.monotonic()
            if not engine.step():
                self._wake.wait(0.05 if not engine.idle else 0.5)
                self._wake.clear()

    def close(self, grace: float = 30.0) -> None:
        """Drain for at most `grace` seconds, then end."""
        until = time.monotonic() + grace
        while not self.engine.idle and time.monotonic() < until and self._thread.is_alive():
            time.sleep(0.05)
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=5)


def _lost(request: Request) -> None:
    request.cancelled = True
    request.deliver(Token(None, "error", error="the model thread was lost and replaced"))
