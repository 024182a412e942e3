"""What is answered before a parser is built: only what is whole, plain, and needs no more than a fixed answer."""

import contextlib
import json
import os
import selectors
from types import SimpleNamespace

import pytest

from luthier.serve import app, door, turns
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


def ready(count, monkeypatch, young):
    """A selector over that many readable pipes, the last `young` of them new, two a turn, and the first a listener."""
    monkeypatch.setattr(turns, "TURN", 2)
    monkeypatch.setattr(turns, "FIRST", 1)
    clock = [0.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: clock[0])
    made, pipes = turns.Turns(), [os.pipe() for _ in range(count)]
    for place, (reader, _) in enumerate(pipes):
        clock[0] = 10.0 + place / 100 if place >= count - young else 0.0
        made.register(reader, selectors.EVENT_READ, place)
    clock[0] = 10.5
    assert made.select(0) == []
    for _, writer in pipes:
        os.write(writer, b"x")
    return made, pipes


def shut(made, pipes):
    made.close()
    for one in (end for pair in pipes for end in pair):
        with contextlib.suppress(OSError):
            os.close(one)


def test_many_ready_connections_are_taken_by_turns(monkeypatch):
    """The first ones (listeners) always, then the young; the others in their order, and none is lost."""
    made, pipes = ready(8, monkeypatch, young=2)
    try:
        assert [key.data for key, _ in made.select(0)] == [0, 7, 6, 1, 2]
        for place in (0, 6, 7):
            os.read(pipes[place][0], 1)
        assert [key.data for key, _ in made.select(0)] == [3, 4]
        left = {1, 2, 3, 4, 5}
        while left:
            for key, _ in made.select(0):
                left.discard(key.data)
                made.unregister(key.fd)
    finally:
        shut(made, pipes)


def test_what_was_closed_or_changed_since_the_poll_is_not_told(monkeypatch):
    """A file number that belongs to another connection now, and one that waits for something else, are asked anew."""
    made, pipes = ready(8, monkeypatch, young=0)
    try:
        assert [key.data for key, _ in made.select(0)] == [0, 1, 2]
        made.unregister(pipes[3][0])
        made.modify(pipes[4][0], selectors.EVENT_WRITE, 4)
        told = [key.data for _ in range(4) for key, _ in made.select(0)]
        assert 3 not in told
        assert 4 not in told
        assert {5, 6, 7} <= set(told)
    finally:
        shut(made, pipes)
