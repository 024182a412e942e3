"""Signals: the first one asks to stop after this step, the second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from luthier.core.errors import StopRequested

_ASKED: list[int] = []


def asked() -> str | None:
    """The name of the signal that asked to stop, or None."""
    return signal.Signals(_ASKED[0]).name if _ASKED else None


@contextmanager
def handle_signals() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGUSR1 are remembered; a second one raises StopRequested."""
    _ASKED.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if _ASKED:
            raise StopRequested(signal.Signals(number).name)
        _ASKED.append(number)

    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        with suppress(ValueError, OSError):
            before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ASKED.clear()
