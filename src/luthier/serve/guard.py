"""Before any route: who asks, from where, how much, how slowly; and one answer whatever breaks behind it.

Pure ASGI, since it stands in front of every request: a full server must say 429 without reading what is asked.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serve.schema import ApiError

if TYPE_CHECKING:
    from luthier.serve.app import Server

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = "/healthz"
MAKES_ANSWERS = ("/v1/chat/completions", "/v1/completions", "/v1/classify")
BODY_S = 10.0
"""Seconds for the headers, and again for the body, of one request."""
READ_S = 60.0
"""Seconds for a client to take what waits for it (64 KiB beside what the kernel keeps)."""
LOG = logging.getLogger("luthier.serve")


class Guard:
    """Wraps the application."""

    def __init__(self, app: Any, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._refuse(scope)
            if scope["method"] == "POST":
                receive = _again(await self._body(receive), receive)
                scope = _as_json(scope)
            async with asyncio.timeout(self.server.limits.deadline_s + BODY_S):
                await self.app(scope, receive, note)
        except ApiError as error:
            await answer(send, error)
        except (KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # tokenizers panic with a BaseException
            LOG.error("%s %s: %s", scope["method"], scope["path"], type(error).__name__)
            LOG.debug("the cause", exc_info=error)
            if started:
                return  # the connection is closed: a cut answer must not look whole
            late = isinstance(error, TimeoutError)
            await answer(send, _late() if late else _broken(error))

    def known(self, scope: Message) -> str:
        """The key that was given. ApiError for no or a wrong one, and for names and origins that are not served."""
        limits, path = self.server.limits, scope["path"]
        headers = dict(scope["headers"])
        key = ""
        if limits.keys and path != OPEN:
            key = _key(headers.get(b"authorization", b""), limits.keys)
            if not key:
                raise ApiError(401, "missing or wrong API key", "invalid_api_key", kind="authentication_error")
        host = headers.get(b"host", b"")
        if limits.hosts and _name(host) not in limits.hosts:
            raise ApiError(403, "this host name is not served", "forbidden_host", kind="permission_error")
        origin = headers.get(b"origin")
        if origin is not None and origin.split(b"://")[-1] != host:
            raise ApiError(403, "pages of other origins are not served", "forbidden_origin", kind="permission_error")
        return key

    def small(self, scope: Message) -> None:
        """413 for a body that is announced as too large."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:19]) > self.server.limits.body_bytes:
            raise ApiError(413, "the body is too large", "request_too_large")

    def _refuse(self, scope: Message) -> None:
        """ApiError for a request that needs no reading. The order is: key, origin, size, room."""
        key = self.known(scope)
        if scope["method"] != "POST":
            return
        self.small(scope)
        if scope["path"] in MAKES_ANSWERS:
            self.server.room()
            self.server.meter.count(key)

    async def _body(self, receive: Receive) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client went away", "client_closed")
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    if size > self.server.limits.body_bytes:
                        raise ApiError(413, "the body is too large", "request_too_large")
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ApiError(408, "the body came too slowly", "timeout") from None
        body = b"".join(parts)
        if problem := json_problem(body):
            raise ApiError(400, problem, "invalid_json")
        return body


def _as_json(scope: Message) -> Message:
    """A body that was found to be JSON is JSON whatever its header says: plain `curl -d` sends another one."""
    kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*kept, (b"content-type", b"application/json")]}


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, once more; then whatever the client does."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def answer(send: Send, error: ApiError) -> None:
    """An error in OpenAI's shape."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _late() -> ApiError:
    return ApiError(504, "the deadline of the request has passed", "deadline_exceeded")


def _broken(error: BaseException) -> ApiError:
    return ApiError(500, f"internal error ({type(error).__name__})", "internal_error")


def _key(given: bytes, keys: tuple[str, ...]) -> str:
    """The key that fits, "" for none; every key is compared, in equal time."""
    scheme, _, secret = given.partition(b" ")
    found = [key for key in keys if hmac.compare_digest(secret, key.encode())]
    return found[0] if found and scheme.lower() == b"bearer" else ""


def _name(host: bytes) -> str:
    """The host name without its port."""
    text = host.decode("latin-1")
    return text.rpartition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]


def json_problem(body: bytes) -> str:
    """NaN, repeated keys and deep nesting are not accepted, though Python's reader would."""

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            raise ValueError("a key stands twice")
        return made

    try:
        json.loads(body, parse_constant=refuse, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {str(error)[:200]}"
    return ""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits for headers, and for the rest of a refused body, no longer than BODY_S, and for a client to
    read no longer than READ_S."""

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _entered: Server | None = None

    def enter(self, server: Server) -> None:
        """Count the request that comes first, until it is answered."""
        self._entered = server
        server.entering += 1

    def _leave(self) -> None:
        if self._entered is not None:
            self._entered.entering -= 1
            self._entered = None

    def on_response_complete(self) -> None:
        """Answered."""
        self._leave()
        super().on_response_complete()

    def connection_made(self, transport: Any) -> None:
        """The first request must begin soon."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(BODY_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._leave()
        self._stop_waiting()
        self._stop_minding()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Too much lies here unread: whoever reads nothing is cut off, since closing would wait for the reader."""
        super().pause_writing()
        self._stop_minding()
        self._unread = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        self._stop_minding()
        super().resume_writing()

    def _stop_minding(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        """Bytes outside of a running request start the clock, a running request stops it."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(BODY_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
