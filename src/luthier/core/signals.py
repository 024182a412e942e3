"""Signals: a stop that is asked for happens at once where nothing can be lost, else at the next safe place.

with handle_signals():            a signal raises StopRequested at once (as ctrl-C does)
    with deferred():              … is remembered: `asked()`; a second one raises StopRequested at once
        with immediate(): …       … raises again, for long work that may be thrown away (an evaluation)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from luthier.core.errors import StopRequested

_ASKED: list[int] = []
_DEFERRED: list[bool] = []


def asked() -> str | None:
    """The name of the signal that asked to stop, or None."""
    return signal.Signals(_ASKED[0]).name if _ASKED else None


def insisted() -> bool:
    """Whether a second signal came: then nothing more is saved."""
    return len(_ASKED) > 1


def _note(number: int, frame: FrameType | None) -> None:
    _ASKED.append(number)
    if len(_ASKED) > 1 or not (_DEFERRED and _DEFERRED[-1]):
        raise StopRequested(signal.Signals(number).name)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGUSR1 are ours. Only in the main thread; elsewhere this does nothing."""
    _ASKED.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        with suppress(ValueError, OSError):
            before[number] = signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ASKED.clear()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the first signal waits until somebody looks at `asked()`, at the latest until the outermost end."""
    with _mode(True):
        yield
    if not any(_DEFERRED) and (name := asked()):
        raise StopRequested(name)


@contextmanager
def immediate() -> Iterator[None]:
    """Inside, a signal raises StopRequested; so does one that already came."""
    with _mode(False):
        if name := asked():
            raise StopRequested(name)
        yield


@contextmanager
def _mode(is_deferred: bool) -> Iterator[None]:
    _DEFERRED.append(is_deferred)
    try:
        yield
    finally:
        _DEFERRED.pop()
