"""What the serving faults share: the served world, a raw asynchronous client, and `luthier serve` as a process."""

import asyncio
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serve"))

from serving_world import delete, get, made, running, settled

__all__ = [
    "completion",
    "delete",
    "get",
    "made",
    "more_files",
    "percentile",
    "process",
    "raw",
    "rss_mb",
    "running",
    "send",
    "settled",
]


def raw(path, body, *headers, method="POST"):
    """The bytes of one request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def completion(**fields):
    """A small completion request."""
    body = {"model": "base", "prompt": "Ada Moser lives in", "max_tokens": 4, "temperature": 0, **fields}
    return raw("/v1/completions", json.dumps(body).encode())


async def send(port, request, timeout=600.0):
    """(status, headers, body) of one request on a connection of its own; status 0 for a reset."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                await writer.drain()
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                return int(head[0].split()[1]), headers, body
            finally:
                writer.close()
    except (ConnectionError, asyncio.IncompleteReadError):
        return 0, {}, b""


def more_files(count):
    """Room for `count` more connections of this process; skips by name where the machine allows no such number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{count} connections need {wanted} open files; the machine allows {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def percentile(values, share):
    """The value below which this share lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def rss_mb(pid):
    """Resident memory in MB."""
    return psutil.Process(pid).memory_info().rss / 1e6


@contextlib.contextmanager
def process(*arguments, **environment):
    """`luthier serve` as a process; gives (Popen, port). Ended if the test did not."""
    command = [sys.executable, "-m", "luthier", "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as child:
        try:
            said, until = "", time.monotonic() + 300
            while not (found := re.search(r"http://[^:/]+:(\d+)", said)) and time.monotonic() < until:
                line = child.stderr.readline()
                assert line, f"the server ended: {said}"
                said += line
            yield child, int(found[1])
        finally:
            if child.poll() is None:
                child.kill()
