"""What is answered before a parser is built: only what is whole, plain, and needs no more than a fixed answer."""

import json
import os
import selectors
from types import SimpleNamespace

import pytest

from luthier.serve import app, door
from luthier.serve.guard import Guard


def opened(keys=(), inflight=2, healthy=True, hosts=("localhost",)):
    worker = SimpleNamespace(healthy=healthy)
    server = app.Server(None, worker, app.Limits(inflight=inflight, keys=keys, hosts=hosts))
    return door.Door(Guard(None, server)), server


def asked(path="/v1/completions", body=b"{}", method="POST", *more):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost:8000", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def said(found, data):
    """(status, headers, body, close) of the answer at the door, None where it goes on to the parser."""
    scope = found.scope(data)
    answer = None if scope is None else found.answer(scope)
    if answer is None:
        return None
    head, _, body = answer[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(first.split()[1]), headers, json.loads(body), answer[1]


def test_a_full_server_refuses_and_one_with_room_reads():
    found, server = opened()
    assert said(found, asked()) is None
    server.inflight = 2
    status, headers, body, close = said(found, asked())
    assert (status, headers["retry-after"], close) == (429, "1", True)
    assert body["error"]["code"] == "rate_limit_exceeded"
    assert server.refused == 1
    server.inflight, server.entering = 0, 4  # twice as many as may be made are being read
    assert said(found, asked())[0] == 429
    server.entering, server.closing = 0, True
    assert said(found, asked())[0] == 503


def test_the_order_of_refusals_is_that_of_the_guard():
    found, server = opened(keys=("right",), hosts=())
    server.inflight = 2
    assert said(found, asked())[0] == 401
    assert said(found, asked("/v1/completions", b"{}", "POST", "Authorization: Bearer right"))[0] == 429
    found, server = opened()
    server.inflight = 2
    assert said(found, asked().replace(b"Host: localhost", b"Host: evil.example"))[0] == 403
    server.limits.body_bytes = 1
    assert said(found, asked())[0] == 413


def test_health_and_readiness_need_no_parser():
    found, server = opened()
    server.inflight = 2
    assert said(found, asked("/healthz", b"", "GET"))[::2] == (200, {"status": "ok"})
    assert said(found, asked("/readyz", b"", "GET"))[::2] == (200, {"ready": True})
    assert said(found, asked("/healthz", b"", "GET", "Connection: close"))[3] is True
    assert said(opened(healthy=False)[0], asked("/readyz", b"", "GET"))[::2] == (503, {"ready": False})
    keyed = opened(keys=("right",), hosts=())[0]
    assert said(keyed, asked("/healthz", b"", "GET"))[0] == 200
    assert said(keyed, asked("/readyz", b"", "GET"))[0] == 401


@pytest.mark.parametrize(
    "data",
    [
        asked()[:-1],  # the body is not whole
        asked() + b"GET",  # something follows
        asked()[:20],
        asked("/v1/completions", b"{}", "POST", "Transfer-Encoding: chunked"),
        asked("/v1/completions", b"{}", "POST", "Expect: 100-continue"),
        asked("/v1/completions", b"{}", "POST", "Content-Length: 2"),
        asked("/v1/completions", b"{}", "POST", "Host: other"),
        asked().replace(b"Host", b"Host "),
        asked().replace(b"Host: localhost:8000\r\n", b""),
        asked().replace(b"Content-Length: 2", b"Content-Length: +2"),
        asked().replace(b"HTTP/1.1", b"HTTP/1.0"),
        asked("/v1/completions?a=b"),
        asked("/v1/%63ompletions"),
        asked("/v1/models", b"", "GET"),
        b"\x16\x03\x01" + b"\0" * 100,
    ],
)
def test_everything_else_is_the_parser_s(data):
    found, server = opened()
    server.inflight = 2
    assert said(found, data) is None


def test_many_ready_connections_are_taken_by_turns(monkeypatch):
    """The first ones (listeners) always, then the young; the oldest are never kept out, and none is lost."""
    monkeypatch.setattr(door, "TURN", 4)
    monkeypatch.setattr(door, "FIRST", 1)
    clock = [0.0]
    monkeypatch.setattr(door.time, "monotonic", lambda: clock[0])
    turns, pipes = door.Turns(), [os.pipe() for _ in range(8)]
    try:
        for place, (reader, _) in enumerate(pipes):
            clock[0] = 10.0 if place >= 6 else 0.0
            turns.register(reader, selectors.EVENT_READ, place)
        assert turns.select(0) == []
        for _, writer in pipes:
            os.write(writer, b"x")
        taken = [key.data for key, _ in turns.select(0)]
        assert taken[:2] == [0, 6]
        assert set(taken[2:]) <= {1, 2, 3, 4, 5}
        left = set(range(8))
        while left:
            for key, _ in turns.select(0):
                left.discard(key.data)
                turns.unregister(key.fd)
    finally:
        turns.close()
        for pair in pipes:
            for one in pair:
                os.close(one)
