"""The standard library's HTTP server around `Studio.answer`; bound to this machine alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from luthier.core.errors import OutOfResource
from luthier.studio.app import Answer, Studio
from luthier.studio.runs import Runs

HOST = "127.0.0.1"
SECONDS = 15.0


def make(root: Path, port: int) -> ThreadingHTTPServer:
    """A server that listens; `.server_port` says where."""

    class Request(BaseHTTPRequestHandler):
        """One connection."""

        server_version, sys_version, timeout, protocol_version = "luthier", "", SECONDS, "HTTP/1.1"

        def _serve(self) -> None:
            found: Answer = self.server.studio.answer(self.command, self.path, dict(self.headers))  # type: ignore[attr-defined]
            self.send_response(found.status)
            for name, value in found.headers().items():
                self.send_header(name, value)
            if self.command not in ("GET", "HEAD"):
                self.send_header("Connection", "close")  # its body was not read
                self.close_connection = True
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        """Threads end with the process; a browser that goes away is no error."""

        daemon_threads = True
        studio: Studio

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A connection that broke."""

    try:
        server = Server((HOST, port), Request)
    except OSError as error:
        raise OutOfResource(
            f"port {port} cannot be used: {error.strerror}", where="--port", remedy="name another, or 0 for any"
        ) from None
    names = ("127.0.0.1", "localhost", "[::1]")
    server.studio = Studio(Runs(root), frozenset(f"{name}:{server.server_port}" for name in names))
    return server


def serve(root: Path, port: int, said: Callable[[str], None]) -> None:
    """Until ctrl-C."""
    server = make(root, port)
    said(f"http://{HOST}:{server.server_port}/")
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
