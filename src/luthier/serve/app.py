"""The HTTP server: OpenAI's routes over the slot engine, guarded.

Binds 127.0.0.1 unless a key is given; a bounded number of answers at once, 429 with Retry-After above it; bodies,
tokens and waiting are limited; errors always have OpenAI's shape; SIGTERM drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import MissingExtra, RecipeError
from luthier.serve.registry import Registry
from luthier.serve.schema import AdapterLoad, ApiError, Chat, Classify, Completion
from luthier.serve.worker import Worker

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse, Response
    from starlette.exceptions import HTTPException
except ImportError:
    raise MissingExtra("luthier serve", "serve") from None


@dataclass
class Limits:
    """What one server takes on."""

    inflight: int = 64
    """Answers being made or waiting."""
    body_bytes: int = 1 << 20
    deadline_s: float = 300.0
    keys: tuple[str, ...] = ()


@dataclass
class Server:
    """What the routes share."""

    registry: Registry
    worker: Worker
    limits: Limits = field(default_factory=Limits)
    inflight: int = 0
    refused: int = 0
    closing: bool = False

    def admit(self, count: int) -> None:
        """Count answers in, or 429."""
        if self.closing:
            raise ApiError(503, "the server is shutting down", "shutting_down")
        if not self.worker.healthy:
            raise ApiError(503, "the model thread does not answer", "not_ready")
        if self.inflight + count > self.limits.inflight:
            self.refused += 1
            raise ApiError(429, "too many requests at once", "rate_limit_exceeded", kind="rate_limit_error")
        self.inflight += count

    def leave(self, count: int) -> None:
        """Count answers out."""
        self.inflight -= count


def build(server: Server) -> FastAPI:
    """The application with all of its routes."""
    from luthier.serve import answers

    app = FastAPI(title="luthier", version="1", docs_url=None, redoc_url=None, lifespan=_lifespan(server))
    _errors(app)
    _guards(app, server)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = server.worker.healthy and not server.closing
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(answers.metrics_text(server), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": server.registry.describe()}

    @app.post("/v1/chat/completions")
    async def chat(body: Chat, request: Request) -> Response:
        return await answers.respond(server, request, answers.chat_job(server, body))

    @app.post("/v1/completions")
    async def completions(body: Completion, request: Request) -> Response:
        return await answers.respond(server, request, answers.completion_job(server, body))

    @app.post("/v1/classify")
    async def classify(body: Classify) -> dict[str, Any]:
        return await asyncio.to_thread(answers.classify, server, body)

    @app.post("/v1/adapters")
    async def load(body: AdapterLoad) -> dict[str, Any]:
        await asyncio.to_thread(server.registry.load_under_roots, body.name, body.path)
        return {"id": body.name, "object": "model"}

    @app.delete("/v1/adapters/{name}")
    async def unload(name: str) -> dict[str, Any]:
        server.registry.unload(name)
        return {"id": name, "object": "model", "deleted": True}

    return app


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
        headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
        return JSONResponse(error.body(), status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        made = ApiError(400, message.encode("utf-8", "replace").decode(), "invalid_request", place or None)
        return JSONResponse(made.body(), status_code=400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        made = ApiError(error.status_code, str(error.detail), "not_found" if error.status_code == 404 else "http_error")
        return JSONResponse(made.body(), status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        made = ApiError(500, f"internal error ({type(error).__name__})", "internal_error")
        return JSONResponse(made.body(), status_code=500)


def _guards(app: FastAPI, server: Server) -> None:
    """Keys, body size, and no cross-origin help."""

    @app.middleware("http")
    async def guard(request: Request, forward: Callable[[Request], Awaitable[Response]]) -> Response:
        if server.limits.keys and request.url.path != "/healthz" and not _authorised(request, server.limits.keys):
            error = ApiError(401, "missing or wrong API key", "invalid_api_key", kind="authentication_error")
            return JSONResponse(error.body(), status_code=401, headers={"WWW-Authenticate": "Bearer"})
        if request.method == "POST":
            body = b""
            async with asyncio.timeout(10):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > server.limits.body_bytes:
                        error = ApiError(413, "the body is too large", "request_too_large")
                        return JSONResponse(error.body(), status_code=413, headers={"Connection": "close"})
            if problem := _json_problem(body):
                return JSONResponse(ApiError(400, problem, "invalid_json").body(), status_code=400)
            request._body = body
        try:
            return await forward(request)
        except TimeoutError:
            return JSONResponse(ApiError(408, "the body came too slowly", "timeout").body(), status_code=408)


def _authorised(request: Request, keys: tuple[str, ...]) -> bool:
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("utf-8", "replace")
    return any([hmac.compare_digest(given, key.encode()) for key in keys])  # noqa: C419 - all keys, whichever fits


def _json_problem(body: bytes) -> str:
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
    import uvicorn

    from luthier.serve.engine import Engine
    from luthier.serve.start import prove_exact

    limits = limits or Limits()
    if host not in ("127.0.0.1", "localhost", "::1") and not limits.keys:
        raise RecipeError(
            f"{host} is reachable from outside, and there is no key",
            where="--host",
            remedy="--api-key-file FILE, or stay on 127.0.0.1",
        )
    registry = Registry(base, base_name, roots)
    for name, folder in adapters.items():
        registry.load(name, folder)
    prove_exact(Engine(base, slots=2), base)
    server = Server(registry, Worker(lambda: Engine(base, slots=slots)), limits)
    if emit is not None:
        emit("serving", host=host, port=port, models=registry.names())
    config = uvicorn.Config(
        build(server),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=30,
        timeout_keep_alive=10,
        h11_max_incomplete_event_size=64 << 10,
    )
    with _own_signals():
        uvicorn.Server(config).run()


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
    """One key a line; empty lines and # comments are nothing."""
    if path is None:
        return ()
    lines = path.read_text("utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
