"""Serving under load (FAULTS F1, F2, F5, F13, F14): `luthier serve` as a process of its own, asked over raw sockets."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from serving import completion, more_files, percentile, process, raw, rss_mb, send

from luthier.serve import guard


@pytest.fixture(scope="module")
def served():
    """A server of the built-in base: (process, port)."""
    with process("--base", "builtin", "--inflight", 64) as found:
        asyncio.run(send(found[1], completion()))
        yield found


WATCH = """
import http.client, json, sys, time
sys.stdin.readline()
delays, until = [], time.monotonic() + 600
while time.monotonic() < until and not stopped:
    start = time.perf_counter()
    wire = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=120)
    wire.request("GET", "/healthz")
    assert wire.getresponse().status == 200
    wire.close()
    delays.append(time.perf_counter() - start)
    time.sleep(0.01)
print(json.dumps(delays))
"""
STOPPED = """
import threading
stopped = []
threading.Thread(target=lambda: (sys.stdin.read(), stopped.append(1)), daemon=True).start()
"""


@contextlib.contextmanager
def health(port, delays):
    """Asks /healthz from a process of its own from the moment that `start()` is called."""
    code = WATCH.replace("delays, until", STOPPED.strip() + "\ndelays, until", 1)
    command = [sys.executable, "-I", "-c", code, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:

        def start():
            child.stdin.write("go\n")
            child.stdin.flush()

        yield start
        delays += json.loads(child.communicate()[0])


ABREAST = 400
"""Connections that this one client opens at a time: a starved client that opened thousands would come to ask only
after the server's patience, which is no fault of the server."""


async def storm(port, count, start):
    """As many connections as can be opened before the first would be let go, then `count` requests at once."""

    async def ask(reader, writer):
        try:
            writer.write(completion(max_tokens=8))
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            return int(head.split()[1]), "retry-after" in head
        except (ConnectionError, asyncio.IncompleteReadError):
            return 0, False
        finally:
            writer.close()

    async def open_and_ask():
        async with queued:
            return await ask(*await asyncio.open_connection("127.0.0.1", port))

    queued = asyncio.Semaphore(ABREAST)
    opened, until = [], time.monotonic() + guard.BODY_S / 3
    while len(opened) < count and time.monotonic() < until:
        some = min(100, count - len(opened))
        opened += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(some)))
    start()
    others = [open_and_ask() for _ in range(count - len(opened))]
    return await asyncio.gather(*(ask(*pair) for pair in opened), *others), len(opened)


@pytest.mark.parametrize(
    ("count", "p99"), [(500, 60.0), (1000, 60.0), pytest.param(10_000, 0.25, marks=pytest.mark.soak)]
)
def test_fault_F1_simultaneous_requests_get_200_or_429(served, figure, count, p99, capsys):
    child, port = served
    more_files(count)
    before = rss_mb(child.pid)
    delays = []
    with health(port, delays) as start:
        found, opened = asyncio.run(storm(port, count, start))
    statuses = {status: sum(1 for got, _ in found if got == status) for status in {got for got, _ in found}}
    with capsys.disabled():
        p50, high, grown = percentile(delays, 0.5), percentile(delays, 0.99), rss_mb(child.pid) - before
        print(f"\nF1: {count} at once ({opened} open before the first asked): {statuses}")
        print(f"    health asked {len(delays)} times: p50 {p50 * 1e3:.0f} ms, p99 {high * 1e3:.0f} ms")
        print(f"    memory {grown:+.0f} MB")
    assert set(statuses) <= {200, 429}
    assert statuses[200] >= 64
    assert all(told for status, told in found if status == 429)
    assert grown <= 300
    assert high <= p99, "health was slow (a loaded machine may be the cause)"
    figure(len(found), count)


def test_fault_F5_bodies_that_are_too_large_are_refused_early(served, figure):
    """A gigabyte announced, a chunked body without end, a gzip bomb."""
    child, port = served
    before = rss_mb(child.pid)

    async def endless():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        sent = 0
        while not answer.done() and sent < 64 << 20:
            writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536
        head = await answer
        writer.close()
        return int(head.split()[1]), sent

    announced = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    bomb = b"\x1f\x8b" + b"\0" * 1000
    codes = [asyncio.run(send(port, announced))[0]]
    code, sent = asyncio.run(endless())
    codes += [code, asyncio.run(send(port, raw("/v1/completions", bomb, "Content-Encoding: gzip")))[0]]
    assert codes == [413, 413, 400]
    assert sent <= 8 << 20
    assert rss_mb(child.pid) - before <= 20
    figure(3, 3)


@pytest.mark.parametrize("count", [300, pytest.param(50_000, marks=pytest.mark.soak)])
def test_fault_F14_memory_does_not_grow(served, figure, count, capsys):
    child, port = served

    async def ask(number):
        kind = number % 3
        fields = {"prompt": f"Ada Moser {number} lives in", "max_tokens": 2, "stream": kind == 1, "n": 1 + (kind == 2)}
        return (await send(port, completion(**fields)))[0]

    async def many(numbers):
        codes = []
        for start in range(0, len(numbers), 16):
            codes += await asyncio.gather(*(ask(number) for number in numbers[start : start + 16]))
        return codes

    warm = min(count, 2000)
    asyncio.run(many(range(warm)))
    before = rss_mb(child.pid)
    codes = asyncio.run(many(range(count)))
    grown = rss_mb(child.pid) - before
    with capsys.disabled():
        print(f"\nF14: {count} requests, memory {grown:+.1f} MB")
    assert set(codes) == {200}
    assert grown <= 5
    figure(len(codes), count)


def test_fault_F13_sigterm_drains(figure, capsys):
    """Streams that run end cleanly, nothing new is taken, exit 0."""
    with process("--base", "builtin", "--slots", 8) as (child, port):

        async def stream(seed):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(completion(stream=True, max_tokens=60, temperature=1.5, seed=seed))
            await reader.readuntil(b"data: ")
            begun.append(seed)
            text = (await reader.read()).decode()
            writer.close()
            return text

        async def go():
            tasks = [asyncio.create_task(stream(seed)) for seed in range(8)]
            while len(begun) < 8:
                await asyncio.sleep(0.01)
            child.send_signal(signal.SIGTERM)
            texts = await asyncio.gather(*tasks)
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            return texts

        begun = []
        texts = asyncio.run(go())
        assert child.wait(timeout=120) == 0
        assert "Traceback" not in child.stderr.read()
    whole = [text for text in texts if "data: [DONE]" in text]
    assert all(json.loads(line[6:]) for text in texts for line in text.split("\r\n") if line.startswith("data: {"))
    figure(len(whole), 8)
