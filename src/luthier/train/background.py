"""One job at a time beside the training: writing a checkpoint does not stall the step.

The thread does not keep a process alive: one that ends at once leaves a staging folder, which the next one removes.
A job's error is raised at the next `submit` or `join`, in the training's own thread. Where no thread can begin (no
memory, no more processes) the job is done by the caller; `threading.Thread.start` would wait for ever there.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable

PATIENCE = 1.0
"""Seconds that a thread may take to begin before its job is taken over."""


class _Job:
    """Done once, by whoever comes first."""

    def __init__(self, work: Callable[[], None]):
        self.work = work
        self.error: BaseException | None = None
        self._claim, self._busy = _thread.allocate_lock(), _thread.allocate_lock()
        self._busy.acquire()

    def run(self) -> None:
        """Do the work, unless somebody has begun it."""
        if not self._claim.acquire(False):
            return
        try:
            self.work()
        except BaseException as error:
            self.error = error
        finally:
            self._busy.release()

    def wait(self) -> None:
        """Until the work is done; a thread that never began is replaced by this one."""
        while not self._busy.acquire(timeout=PATIENCE):
            self.run()


class Writer:
    """Runs jobs one after another; at most one waits for the training."""

    def __init__(self) -> None:
        self._job: _Job | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` when the one before is done."""
        self.join()
        self._job = _Job(job)
        try:
            _thread.start_new_thread(self._job.run, ())
        except (RuntimeError, MemoryError):
            self._job.run()

    def join(self) -> None:
        """Wait for the last job and raise what it raised."""
        if self._job is None:
            return
        self._job.wait()
        job, self._job = self._job, None
        if job.error is not None:
            raise job.error
