"""The first bytes of a connection: health, and refusals of a full server, before anything is built for the request.

Ten thousand clients at once are ten thousand parsers, tasks and parsed bodies, and whoever asks for the health waits
behind them. So a connection begins with next to nothing: a request that came whole and needs no more than a fixed
answer (health, readiness, 401, 403, 413, 429, 503) gets it at once; every other one is handed to the HTTP parser.
And an event loop that finds thousands of connections ready takes them by turns, listeners and new ones first.
"""

from __future__ import annotations

import asyncio
import http
import json
import re
from typing import TYPE_CHECKING, Any

from luthier.serve import guard
from luthier.serve.guard import MAKES_ANSWERS, OPEN, PatientProtocol
from luthier.serve.schema import ApiError
from luthier.serve.turns import Turns

if TYPE_CHECKING:
    from luthier.serve.guard import Guard

READY = "/readyz"
LINE = re.compile(rb"(GET|POST) (/[\w./-]*) HTTP/1\.1\r\n")
NOT_HERE = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
"""Headers that make a request the parser's."""


class Door:
    """What can be said at once."""

    def __init__(self, kept: Guard):
        self.guard, self.server = kept, kept.server

    def scope(self, data: bytes) -> dict[str, Any] | None:
        """Method, path and headers of a request that is wholly there and plain; None for the parser to see."""
        line, end = LINE.match(data), data.find(b"\r\n\r\n")
        if line is None or end < 0:
            return None
        headers: dict[bytes, bytes] = {}
        for one in data[line.end() : end].split(b"\r\n") if end > line.end() else ():
            name, colon, value = one.partition(b":")
            name = name.lower()
            if not colon or not name or name in headers or name in NOT_HERE or name != name.strip():
                return None
            headers[name] = value.strip()
        length = headers.get(b"content-length", b"0")
        if b"host" not in headers or not length.isdigit() or len(data) - end - 4 != int(length[:19]):
            return None
        return {"method": line[1].decode(), "path": line[2].decode(), "headers": list(headers.items())}

    def answer(self, scope: dict[str, Any]) -> tuple[bytes, bool] | None:
        """The bytes to send and whether to close then; None where the request needs more than that."""
        get, path, server = scope["method"] == "GET", scope["path"], self.server
        full = not get and path in MAKES_ANSWERS and server.full
        if not full and not (get and path in (OPEN, READY)):
            return None
        try:
            self.guard.known(scope)
            if full:
                self.guard.small(scope)
                raise server.no_room()
        except ApiError as error:
            return _bytes(error.status, error.body(), error.headers(), True), True
        close = dict(scope["headers"]).get(b"connection", b"").lower() == b"close"
        if path == OPEN:
            return _bytes(200, {"status": "ok"}, {}, close), close
        return _bytes(200 if server.ready else 503, {"ready": server.ready}, {}, close), close


def _bytes(status: int, body: dict[str, Any], headers: dict[str, str], close: bool) -> bytes:
    text = json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(text)}",
        *(f"{name.lower()}: {value}" for name, value in headers.items()),
        *(["connection: close"] if close else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + text


class Front(asyncio.Protocol):
    """A connection until its first request that needs the parser."""

    door: Door

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None):
        self._parts = {"config": config, "server_state": server_state, "app_state": app_state}
        self._connections = server_state.connections
        self._loop = _loop or asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first request must come soon."""
        self.transport = transport
        self._connections.add(self)
        self._timer = self._loop.call_later(guard.BODY_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing was begun."""
        self._leave()

    def _leave(self) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def shutdown(self) -> None:
        """The server goes down, and nothing is being answered here."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """An answer at once, or over to the parser with all that came."""
        scope = self.door.scope(data)
        if scope is not None and (found := self.door.answer(scope)) is not None:
            self.transport.write(found[0])
            if found[1]:
                self.transport.close()
            return
        self._leave()
        inner = PatientProtocol(**self._parts, _loop=self._loop)
        if scope is not None and scope["method"] == "POST" and scope["path"] in MAKES_ANSWERS:
            inner.enter(self.door.server)
        self.transport.set_protocol(inner)
        inner.connection_made(self.transport)
        inner.data_received(data)


def front(kept: Guard) -> type[Front]:
    """The protocol of this server's connections."""
    return type("Front", (Front,), {"door": Door(kept)})


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that takes its connections by turns."""
    return asyncio.SelectorEventLoop(Turns())
