"""What an event loop does next when thousands of connections are ready: listeners, whoever came lately, some others.

A poll of ten thousand ready connections costs milliseconds, and serving them all costs seconds, which everyone who asks
for the health would wait. So what is ready is remembered and taken in small turns, and before each turn a second, small
selector is asked: it knows the listeners and the connections of the last second.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from typing import Any

TURN = 16
"""Connections that are served before the listeners and newcomers are asked again."""
YOUNG_S = 1.0
FIRST = 4
"""The first things that a loop watches: its own pipe and the listeners."""

Ready = tuple[selectors.SelectorKey, int]


class Turns(selectors.DefaultSelector):  # type: ignore[valid-type,misc]
    """At most TURN of the old connections at a time. Nothing is lost: what is ready stays ready."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead = selectors.DefaultSelector()
        self._first: list[int] = []
        self._born: dict[int, float] = {}
        self._left: deque[tuple[int, int, float]] = deque()  # file, events, when they were asked

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Newcomers are asked for before the others."""
        key: selectors.SelectorKey = super().register(fileobj, events, data)
        if len(self._first) < FIRST:
            self._first.append(key.fd)
        self._born[key.fd] = time.monotonic()
        self._ahead.register(key.fd, events)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As the loop wants it."""
        key: selectors.SelectorKey = super().modify(fileobj, events, data)
        if key.fd in self._ahead.get_map():
            self._ahead.modify(key.fd, events)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Forgets."""
        key: selectors.SelectorKey = super().unregister(fileobj)
        self._born.pop(key.fd, None)
        if key.fd in self._ahead.get_map():
            self._ahead.unregister(key.fd)
        if key.fd in self._first:
            self._first.remove(key.fd)
        return key

    def close(self) -> None:
        """Both selectors."""
        self._ahead.close()
        super().close()

    def select(self, timeout: float | None = None) -> list[Ready]:
        """Everything where little is ready; else listeners and newcomers, and a turn of the others in their order."""
        if not self._left:
            ready: list[Ready] = super().select(timeout)
            if len(ready) <= TURN:
                return ready
            now = time.monotonic()
            self._left.extend((key.fd, events, now) for key, events in ready)
        found = self._newcomers()
        taken = {key.fd for key, _ in found}
        most = len(found) + TURN
        while self._left and len(found) < most:
            fd, events, asked = self._left.popleft()
            key = self.get_map().get(fd)
            # Closed since, or another connection under the same number: the next poll tells about that one.
            if key is not None and fd not in taken and self._born[fd] <= asked and events & key.events:
                found.append((key, events & key.events))
        return found

    def _newcomers(self) -> list[Ready]:
        """Listeners and the youngest connections that are ready; who is young no longer leaves the small selector."""
        first: list[Ready] = []
        young: list[Ready] = []
        since = time.monotonic() - YOUNG_S
        for small, events in self._ahead.select(0):
            key = self.get_map().get(small.fd)
            if key is None:
                continue
            if small.fd in self._first:
                first.append((key, events & key.events))
            elif self._born[small.fd] > since:
                young.append((key, events & key.events))
            else:
                self._ahead.unregister(small.fd)
        young.sort(key=lambda one: -self._born[one[0].fd])
        return first + young[:TURN]
