"""One job at a time beside the training: writing a checkpoint does not stall the step.

The thread is a daemon: a process that ends at once leaves a staging folder, which the next one removes. A job's
error is raised at the next `submit` or `join`, in the training's own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Runs jobs one after another; at most one waits for the training."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` when the one before is done."""
        self.join()

        def work() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="luthier-checkpoint", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the last job and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
