"""The HTTP server: OpenAI's routes over the slot engine, guarded.

Binds 127.0.0.1 unless a key is given; a bounded number of answers at once, 429 with Retry-After above it; bodies,
tokens and waiting are limited; errors always have OpenAI's shape; SIGTERM drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import MissingExtra, RecipeError
from luthier.serve.registry import Registry
from luthier.serve.schema import ERRORS, STREAMED, AdapterLoad, ApiError, Chat, Classify, Completion, deepest, ignored
from luthier.serve.worker import Worker

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse, Response
    from starlette.exceptions import HTTPException

    from luthier.serve.door import front
    from luthier.serve.guard import Guard
except ImportError:
    raise MissingExtra("luthier serve", "serve") from None


LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
KEY_VARIABLE = "LUTHIER_API_KEY"
BACKLOG = 4096
"""Connections that the kernel keeps for us; asyncio itself accepts fewer at a turn, so that answers go on."""
MOST_FILES = 65_536


@dataclass
class Limits:
    """What one server takes on."""

    inflight: int = 64
    """Answers being made or waiting."""
    body_bytes: int = 1 << 20
    deadline_s: float = 300.0
    per_minute: int = 0
    """Requests that one key (or everybody, without keys) may make in a minute; 0: no such limit."""
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """Names that the Host header may have; empty: any. Keeps pages that rebind their DNS name away."""


class Meter:
    """Requests by key in the running minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.time):
        self.per_minute, self.clock = per_minute, clock
        self._minute = 0
        self._made: dict[str, int] = {}

    def count(self, key: str) -> None:
        """One more, or 429 with the seconds until the next minute."""
        if not self.per_minute:
            return
        now = self.clock()
        if int(now // 60) != self._minute:
            self._minute, self._made = int(now // 60), {}
        if self._made.get(key, 0) >= self.per_minute:
            wait = 60 - int(now % 60)
            raise ApiError(429, "too many requests in this minute", "rate_limit_exceeded", retry_after=wait)
        self._made[key] = self._made.get(key, 0) + 1


@dataclass
class Server:
    """What the routes share."""

    registry: Registry
    worker: Worker
    limits: Limits = field(default_factory=Limits)
    inflight: int = 0
    refused: int = 0
    entering: int = 0
    """Requests that came whole and are being read, made or refused."""
    closing: bool = False

    def __post_init__(self) -> None:
        self.meter = Meter(self.limits.per_minute)
        self.classifying, self.loading = asyncio.Lock(), asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.worker.healthy and not self.closing

    def room(self, count: int = 1) -> None:
        """503 while nothing is made, 429 where `count` answers more would be too many."""
        if self.closing:
            raise ApiError(503, "the server is shutting down", "shutting_down")
        if not self.worker.healthy:
            raise ApiError(503, "the model thread does not answer", "not_ready")
        if count > self.limits.inflight:
            raise ApiError(400, f"at most {self.limits.inflight} answers at once", "too_many_answers", "n")
        if self.inflight + count > self.limits.inflight:
            self.refused += 1
            raise ApiError(429, "too many requests at once", "rate_limit_exceeded")

    @property
    def full(self) -> bool:
        """Whether one more answer would be refused; so many are also enough to be read at once."""
        crowded = self.inflight >= self.limits.inflight or self.entering >= 2 * self.limits.inflight
        return crowded or not self.ready

    def no_room(self) -> ApiError:
        """Why a full server refuses."""
        try:
            self.room()
        except ApiError as error:
            return error
        self.refused += 1
        return ApiError(429, "too many requests at once", "rate_limit_exceeded")

    @contextlib.contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Count answers in, and out again whatever happens."""
        self.room(count)
        self.inflight += count
        try:
            yield
        finally:
            self.inflight -= count


def build(server: Server) -> Guard:
    """The application with all of its routes, behind its guard."""
    from luthier.serve import answers, labels
    from luthier.serve.metrics import metrics_text

    app = FastAPI(title="luthier", version="1", docs_url=None, redoc_url=None, lifespan=_lifespan(server))
    _errors(app)
    _schema(app, server)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        return JSONResponse({"ready": server.ready}, status_code=200 if server.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(metrics_text(server), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": server.registry.describe()}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        server.registry.get(name)
        return next(one for one in server.registry.describe() if one["id"] == name)

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: Chat, request: Request) -> Response:
        return await answers.respond(server, request, await asyncio.to_thread(answers.chat_job, server, body))

    @app.post("/v1/completions", responses=STREAMED)
    async def completions(body: Completion, request: Request) -> Response:
        return await answers.respond(server, request, await asyncio.to_thread(answers.completion_job, server, body))

    @app.post("/v1/classify", responses=ERRORS)
    async def classify(body: Classify, response: Response) -> dict[str, Any]:
        response.headers.update(ignored(body))
        with server.admitted(1):
            async with server.classifying:
                return await asyncio.to_thread(labels.classify, server, body)

    @app.post("/v1/adapters", responses=ERRORS)
    async def load(body: AdapterLoad, response: Response) -> dict[str, Any]:
        response.headers.update(ignored(body))
        async with server.loading:  # one at a time: loads must not take all the threads that prompts need
            names = await asyncio.to_thread(server.registry.load_under_roots, body.name, body.path)
        return {"id": body.name, "object": "model", "models": names}

    @app.delete("/v1/adapters/{name}", responses=ERRORS)
    async def unload(name: str) -> dict[str, Any]:
        async with server.loading:
            server.registry.unload(name)
        return {"id": name, "object": "model", "deleted": True}

    return Guard(app, server)


def _schema(app: FastAPI, server: Server) -> None:
    """/openapi.json names the models that are served right now."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        app.openapi_schema = None
        made = plain()
        for name in ("Chat", "Completion", "Classify"):
            made["components"]["schemas"][name]["properties"]["model"]["enum"] = server.registry.names()
        return made

    app.openapi = described  # type: ignore[method-assign]


def _lifespan(server: Server) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                await asyncio.sleep(1)
                await asyncio.to_thread(server.worker.revive)

        watchdog = asyncio.create_task(watch())
        try:
            yield
        finally:
            server.closing = True
            watchdog.cancel()
            await asyncio.to_thread(server.worker.close)

    return life


def _errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape, the framework's own too."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        place, first = deepest(error.errors(), error.body)
        said = str(first["msg"]).removeprefix("Value error, ")
        message = f"{place}: {said}" if place and first["type"] != "not_served" else said
        made = ApiError(400, message.encode("utf-8", "replace").decode(), "invalid_request", place or None)
        return JSONResponse(made.body(), status_code=400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        made = ApiError(error.status_code, str(error.detail), "not_found" if error.status_code == 404 else "http_error")
        return JSONResponse(made.body(), status_code=error.status_code, headers=error.headers)


def serve(
    base: Any,
    adapters: dict[str, Path],
    *,
    base_name: str = "base",
    host: str = "127.0.0.1",
    port: int = 8000,
    roots: tuple[Path, ...] = (),
    slots: int = 16,
    limits: Limits | None = None,
    emit: Callable[..., None] | None = None,
) -> None:
    """Load, listen, drain on SIGTERM. RecipeError for an open address without a key."""
    from luthier.serve.start import engine_for

    limits = limits or Limits()
    if host in LOCAL:
        limits.hosts = () if limits.keys else LOCAL
    elif not limits.keys:
        raise RecipeError(
            f"{host} is reachable from outside, and there is no key",
            where="--host",
            remedy=f"--api-key-file FILE or {KEY_VARIABLE}, or stay on 127.0.0.1",
        )
    build, way, reason = engine_for(base, slots)
    registry = Registry(base, base_name, roots, way)
    for name, folder in adapters.items():
        registry.load(name, folder)
    server = Server(registry, Worker(build), limits)
    _open_more_files()
    sockets = listen(host, port)
    if emit is not None:
        port = sockets[0].getsockname()[1]
        emit("serving", host=host, port=port, models=registry.names(), one_by_one=reason)
    gc.collect()
    gc.freeze()  # what stays for ever is not looked through again while requests wait
    with _own_signals():
        listener(configure(server)).run(sockets=sockets)


def _open_more_files() -> None:
    """Each connection is a file; the usual soft limit of 1,024 is far below what the kernel allows."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def listener(config: Any) -> Any:
    """uvicorn's server, with a longer queue in the kernel than asyncio accepts at one turn."""
    import uvicorn

    class Listener(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for one in sockets or ():
                one.listen(BACKLOG)

    return Listener(config)


def configure(server: Server, **options: Any) -> Any:
    """uvicorn's configuration for this server."""
    import uvicorn

    guarded = build(server)
    settings: dict[str, Any] = {
        "http": front(guarded),
        "loop": "luthier.serve.door:new_loop",
        "ws": "none",
        "log_level": "error",
        "access_log": False,
        "backlog": 64,
        "timeout_graceful_shutdown": 30,
        "timeout_keep_alive": 10,
        "h11_max_incomplete_event_size": 64 << 10,
    }
    return uvicorn.Config(guarded, **{**settings, **options})


def listen(host: str, port: int) -> list[socket.socket]:
    """A bound socket; RecipeError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise RecipeError(f"{host}:{port}: {error.strerror or error}", where="--port", remedy="another port") from None
    made.listen(BACKLOG)
    return [made]


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """uvicorn drains on SIGTERM and SIGINT and then raises them again; a drained server has ended well."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_keys(path: Path | None) -> tuple[str, ...]:
    """One key a line (empty lines and # comments are nothing), and that of the environment."""
    own = tuple(key for key in [os.environ.get(KEY_VARIABLE, "").strip()] if key)
    if path is None:
        return own
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the keys cannot be read: {error}", where="--api-key-file") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise RecipeError("the file holds no key", where=str(path), remedy="one key a line")
    return keys + own
