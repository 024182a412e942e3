"""Serving faults one by one (FAULTS F2–F4, F6–F12, F15), on a server in a thread of this process."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from serving import completion, delete, get, made, percentile, raw, rss_mb, running, send, settled

from luthier.core.errors import LuthierError
from luthier.data.templates import base as templates
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve import answers, app, guard
from luthier.serve.schema import ApiError

KINDS = {"lora": {"name": "lora", "r": 4}, "prefix": {"name": "prefix", "length": 4}}


@pytest.fixture(scope="module")
def base():
    return load_base(ModelSettings(path="builtin"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served").resolve()
    for number, (name, method) in enumerate(KINDS.items()):
        made(folder, name, method, number=number)
    return folder


@pytest.fixture(scope="module")
def server(base, root):
    with running(base, {name: root / name for name in KINDS}, root) as found:
        yield found


def post(server, path, /, **body):
    return httpx.post(f"{server.url}{path}", json=body, timeout=300)


@pytest.mark.parametrize("count", [120, pytest.param(500, marks=pytest.mark.soak)])
def test_fault_F2_slow_clients_are_let_go(base, figure, monkeypatch, count):
    """Half headers and half bodies: the others are answered, the slow ones end in time."""
    monkeypatch.setattr(guard, "BODY_S", 8.0)
    with running(base, {}) as server:

        async def slow(data):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            begun.append(1)
            try:
                told = await asyncio.wait_for(reader.read(), 120)
            except ConnectionError:  # closed while bytes of ours were unread
                told = b""
            writer.close()
            return told == b"" or told.startswith(b"HTTP/1.1 408")

        async def go():
            await timed(server)
            idle = [await timed(server) for _ in range(15)]
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            half = (head, head + b"Content-Length: 50\r\n\r\n{")
            tasks = [asyncio.create_task(slow(half[number % 2])) for number in range(count)]
            while len(begun) < count:
                await asyncio.sleep(0.01)
            busy = [await timed(server) for _ in range(15)]
            return idle, busy, await asyncio.gather(*tasks)

        begun = []
        idle, busy, ended = asyncio.run(go())
        assert_not_waiting(idle, busy)
        figure(sum(ended), count)


async def timed(server):
    """Seconds of one small request."""
    start = time.perf_counter()
    assert (await send(server.port, completion()))[0] == 200
    return time.perf_counter() - start


def assert_not_waiting(idle, busy):
    """Twice as slow at most, and what a starved machine adds: whoever waits for the slow ones waits 8 s."""
    assert percentile(busy, 0.5) <= 2 * percentile(idle, 0.5) + 1.5
    assert percentile(busy, 0.99) <= 2 * percentile(idle, 0.99) + 5


def test_fault_F2_readers_that_never_read_are_cut_off(base, figure, monkeypatch):
    """Streams of more than all buffers hold, that nobody reads: others are answered meanwhile, and nothing stays."""

    def small(*place):
        made = listen(*place)
        made[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # connections inherit it
        return made

    listen = app.listen
    monkeypatch.setattr(app, "listen", small)
    monkeypatch.setattr(guard, "READ_S", 8.0)
    fat = completion(stream=True, n=2, max_tokens=200, logprobs=20, temperature=1.5, seed=1)
    with running(dataclasses.replace(base, stop_ids=()), {}) as server:  # so that no answer is short

        async def go(wires):
            await timed(server)
            idle = [await timed(server) for _ in range(15)]
            for wire in wires:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                wire.connect(("127.0.0.1", server.port))
                wire.sendall(fat)
            while server.inflight < 2 * len(wires):
                await asyncio.sleep(0.01)
            return idle, [await timed(server) for _ in range(15)]

        wires = [socket.socket() for _ in range(3)]
        idle, busy = asyncio.run(go(wires))
        assert_not_waiting(idle, busy)
        assert settled(server, 120)  # though nobody closed or read anything
        cut, most = 0, 0
        for wire in wires:
            wire.settimeout(120)
            came = b""
            with contextlib.suppress(ConnectionError):
                while part := wire.recv(1 << 16):
                    came += part
            wire.close()
            most = max(most, len(came))
            cut += b"[DONE]" not in came
        assert most < 1 << 17
        figure(cut, 3)


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_fault_F3_a_disconnect_stops_the_answer(server, monkeypatch, figure, count, capsys):
    """Streams and plain posts, closed or reset at some moment: at most one token after the server saw it, and no
    memory is left behind (measured after the first hundred of many)."""
    seen, cancel = [], answers._cancel

    def note(owner, made_answers):
        seen.extend((answer.request.made, len(answer.request.made)) for answer in made_answers)
        cancel(owner, made_answers)

    submitted, submit = [], server.worker.submit

    def taken(request):
        submitted.append(1)
        submit(request)

    monkeypatch.setattr(server.worker, "submit", taken)
    monkeypatch.setattr(answers, "_cancel", note)
    after, before = [], 0.0
    for number in range(count + (100 if count >= 1000 else 0)):
        fields = {"stream": bool(number % 2), "max_tokens": 400, "temperature": 1.5, "seed": number}
        wire = socket.create_connection(("127.0.0.1", server.port))
        until = time.monotonic() + 120
        wire.sendall(completion(**fields))
        while len(submitted) <= number and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.01 * (number % 4))
        if number % 3 == 0:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wire.close()
        if number % 50 == 49:
            after += stopped(server, seen)
            before = before or rss_mb(os.getpid()) * (number == 99)
    after += stopped(server, seen)
    assert len(after) == len(submitted) >= count
    assert sum(made for made, _ in after) < 400 * len(after) / 2
    if before:
        grown = rss_mb(os.getpid()) - before
        with capsys.disabled():
            print(f"\nF3: {count} disconnects, memory {grown:+.1f} MB")
        assert grown <= 5
    figure(sum(more <= 1 for _, more in after[-count:]), count)


def stopped(server, seen):
    """(tokens made, tokens after the server saw the end) of each, once all have stopped."""
    assert settled(server)
    found = [(len(made), len(made) - told) for made, told in seen]
    seen.clear()
    return found


EDGES = {
    "max_tokens": (0, -1, 2**31, 2**63, 1.5, "many", True, [], 1e308, 100_000, {}, float("inf")),
    "n": (0, -1, 17, 2**63, 1.5, "two", True, [], {}, 1e308, 0.5, -(2**63)),
    "temperature": (-0.1, 2.1, "hot", True, [], {}, 1e308, -1e308, float("nan"), float("inf"), 3, "1.0x"),
    "top_p": (-0.1, 1.1, "most", True, [], {}, 1e308, float("nan"), float("-inf"), 2, -1, "x"),
    "top_k": (-1, 1001, 1.5, "ten", True, [], {}, 2**63, 1e308, -(2**31), 0.1, "x"),
    "seed": (2**53 + 2, 2**63, 1.5, "x", True, [], {}, -(2**54), 1e308, -0.5, float("nan"), "0x"),
    "stop": ("", [""], ["a"] * 5, [1], 1, True, {}, "a" * 201, [None], [["a"]], 1.5, ["a", ""]),
    "logprobs": (-1, 21, 1.5, "x", [], {}, 2**63, 1e308, float("nan"), -0.5, "five", True),
    "prompt": (["a ", "b " * 4000], [], [-1], [10**9], [1.5], [True], {}, 1, "a " * 4000, [None], ["a"] * 17, True),
    "logit_bias": ({"1": 5}, {"x": 1}, [1], "x", 1, True, {"1": None}, 1.5, [[1, 2]], {"1": "a"}, {"-1": 1},
                   {"1": 1e308}),
    "frequency_penalty": (1, -1, 0.1, "x", True, [], {}, 1e308, float("nan"), 2, -2, float("inf")),
    "stream_options": (1, "x", [1], True, {"include_usage": 5}, {"include_usage": []}, 1.5, "{}", [[]],
                       {"include_usage": "x"}, {"include_usage": {}}, -1),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_fault_F6_each_field_over_its_limits_is_400(server, figure, name):
    codes = []
    with httpx.Client(base_url=server.url, timeout=300) as client:
        for value in EDGES[name]:
            body = {"model": "base", "prompt": "a", "max_tokens": 1, name: value}
            codes.append(client.post("/v1/completions", content=json.dumps(body)).status_code)
    figure(codes.count(400), 12)


def test_fault_F7_no_name_leads_out_of_the_roots(server, root, tmp_path, figure, monkeypatch):
    """Not even a look outside: every stat and open during 200 hostile loads is below the root."""
    shutil.copytree(root / "lora", tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    (root.parent / f"{root.name}-sibling").mkdir(exist_ok=True)
    seeds = ["..", "../..", str(tmp_path / "outside"), "link", "link/adapter", "lora/../../x", "%2e%2e", "..%2f..",
             "a\0b", "~", "~root", "//etc", "lora//..", "./lora", "lora/.", f"../{root.name}-sibling", "\u2025",
             "..\\..", "C:\\x", "\uff0e\uff0e/x"]  # fmt: skip
    names = [seed + tail for seed in seeds for tail in ("", "/", "/adapter", "/../..", "/\u202e", "/" + "a" * 300,
                                                         "/" + "b/" * 300, "/..", "/etc/passwd", "\t")]  # fmt: skip
    looked, own = [], threading.get_ident()
    for function in ("stat", "lstat", "open", "scandir", "readlink"):
        real = getattr(os, function)

        def spy(path, *rest, _real=real, **options):
            if threading.get_ident() == own and not isinstance(path, int):
                looked.append(os.fspath(path))
            return _real(path, *rest, **options)

        monkeypatch.setattr(os, function, spy)
    refused = 0
    for name in names:
        try:
            server.registry.load_under_roots("evil", name)
        except (ApiError, LuthierError) as error:
            refused += getattr(error, "status", 0) in (400, 404)
    monkeypatch.undo()
    (root / "link").unlink()
    outside = [path for path in looked if Path(str(path)) != root and root not in Path(str(path)).parents]
    assert outside == []
    for name in ("..", "../..", "link", "%2e%2e/lora", "a\0b"):
        assert post(server, "/v1/adapters", name="evil", path=name).status_code in (400, 404)
        assert delete(f"{server.url}/v1/adapters/{name.replace(chr(0), '%00')}").status_code in (400, 404, 405)
    figure(refused, 200)


def broken(root, number):
    """A copy of the LoRA with one fault."""
    folder = root / f"broken-{number}"
    shutil.copytree(root / "lora", folder, dirs_exist_ok=True)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    kind = number % 5
    if kind == 0:
        weights.write_bytes(weights.read_bytes()[: 100 + number])
    elif kind == 1:
        weights.unlink()
    elif kind == 2:
        config.write_text("{")
    elif kind == 3:
        config.write_text(json.dumps({**json.loads(config.read_text()), "r": 10**6}))
    else:
        data = bytearray(weights.read_bytes())
        data[0] ^= 0xFF
        weights.write_bytes(bytes(data))
    return folder.name


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.soak)])
def test_fault_F8_broken_adapters_do_not_disturb(server, root, figure, count):
    def texts():
        prompts = ["Ada Moser lives in", "Hello", "Karl Ulrich is a"] * 4
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            options = {"max_tokens": 12, "temperature": 0}
            asks = pool.map(lambda p: post(server, "/v1/completions", model="lora", prompt=p, **options), prompts)
            return [answer.json()["choices"][0]["text"] for answer in asks]

    quiet = texts()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        loads = [pool.submit(post, server, "/v1/adapters", name="bad", path=broken(root, n)) for n in range(count)]
        rounds = [texts()]
        while not all(load.done() for load in loads):
            rounds.append(texts())
        codes = [load.result().status_code for load in loads]
    assert all(found == quiet for found in rounds)
    assert get(f"{server.url}/readyz").status_code == 200
    figure(codes.count(400), count)


@pytest.mark.parametrize(
    ("swaps", "replies", "piece"),
    [(12, 60, 0), *(pytest.param(250, 1250, piece, marks=pytest.mark.soak) for piece in range(4))],
)
def test_fault_F9_hot_swaps_never_mix(base, tmp_path, figure, swaps, replies, piece):
    """Eight adapters under two names, swapped while asked: each reply is wholly that of one of them. 1,000 swaps and
    5,000 replies in four pieces."""
    methods = [{"name": "lora", "r": 2 + n} for n in range(4)] + [{"name": "prefix", "length": 2 + n} for n in range(4)]
    for number, method in enumerate(methods):
        made(tmp_path, f"m{number}", method, number=number)
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    body = {"prompt": "Ada Moser", "max_tokens": 10, "temperature": 0}
    with running(base, {"x": tmp_path / "m0", "y": tmp_path / "m4"}, tmp_path) as server:

        def text(name):
            return post(server, "/v1/completions", model=name, **body).json()["choices"][0]["text"]

        right = {}
        for number in range(8):
            post(server, "/v1/adapters", name="z", path=f"m{number}")
            right[f"m{number}"] = text("z")
        assert len(set(right.values())) >= 6

        done = threading.Event()

        def swap():
            for number in range(swaps):
                name, path = "xy"[number % 2], f"m{(number * 3 + piece) % 8}"
                assert post(server, "/v1/adapters", name=name, path=path).status_code == 200
            done.set()

        swapper = threading.Thread(target=swap)
        swapper.start()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda number: text("xy"[number % 2]), range(replies)))
            while not done.is_set():
                found += list(pool.map(text, "xyxy"))
        swapper.join()
        assert settled(server)
    assert all(torch.equal(before[name], weight) for name, weight in base.model.named_parameters())
    figure(sum(one in right.values() for one in found), len(found))


def test_fault_F10_every_route_asks_for_the_key(base, figure):
    with running(base, {}, keys=("Secret-key",)) as closed:
        app = guard_of(closed)
        routes = [(method, route.path) for route in app.routes for method in getattr(route, "methods", ())]
        assert len(routes) >= 9
        wrong = (
            None,
            "Bearer nope",
            "Bearer Secret-ke",
            "Bearer Secret-key2",
            "Bearer secret-KEY",
            "Secret-key",
            "Basic Secret-key",
        )
        right, refused = 0, 0
        with httpx.Client(base_url=closed.url, timeout=300) as client:
            for method, path in [*routes, ("GET", "/nothing"), ("GET", "/healthz/"), ("GET", "//healthz")]:
                for value in wrong:
                    headers = {"Authorization": value} if value else {}
                    code = client.request(method, re.sub(r"{.*?}", "x", path), headers=headers).status_code
                    right += 1
                    refused += code == (200 if path == "/healthz" and method == "GET" else 401) or (
                        path == "/healthz" and code == 405
                    )
            good = client.get("/v1/models", headers={"Authorization": "Bearer Secret-key"})
        assert good.status_code == 200
    figure(refused, right)


def guard_of(server):
    """The application inside the guard, built again to enumerate its routes."""
    from luthier.serve.app import build

    return build(server).app


def test_fault_F11_rate_and_deadline(base, figure):
    with running(base, {}, keys=("one", "two"), per_minute=5) as metered:

        def ask(key):
            body = {"model": "base", "prompt": "a", "max_tokens": 1}
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{metered.url}/v1/completions", json=body, headers=headers, timeout=300)

        metered.meter.clock = lambda: 1234.0
        codes = [ask("one").status_code for _ in range(7)] + [ask("two").status_code]
        assert codes == [200] * 5 + [429] * 2 + [200]
        assert int(ask("one").headers["retry-after"]) == 26
        metered.meter.clock = lambda: 1261.0
        assert ask("one").status_code == 200
    with running(base, {}, deadline_s=0.3) as short:
        engine, step = short.worker.engine, short.worker.engine.step
        engine.step = lambda: (time.sleep(0.05), step())[1]
        late = [post(short, "/v1/completions", model="base", prompt="a", max_tokens=450, seed=s) for s in range(3)]
        assert {answer.status_code for answer in late} <= {504, 200}
        refused = [answer.json()["error"] for answer in late if answer.status_code == 504]
        assert refused[0]["code"] == "cancelled"
        assert settled(short)
        figure(2, 2)


class Panic(BaseException):
    """What a tokenizer or extension throws that is no Exception."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_fault_F12_a_lost_model_thread_is_replaced(base, root, figure):
    """A panic in a forward, a thread that dies, a thread that hangs: one request fails, the server goes on."""
    body = {"prompt": "Hello", "max_tokens": 3, "temperature": 0}
    with running(base, {"lora": root / "lora"}, stalled_after=120.0) as one:
        quiet = post(one, "/v1/completions", model="lora", **body).json()["choices"]

        def ok():
            assert post(one, "/v1/completions", model="lora", **body).json()["choices"] == quiet

        tree, calls = one.worker.engine.base.anatomy.backbone, []

        def panic(*_):
            calls.append(1)
            if len(calls) == 1:
                raise Panic("tokenizer")

        handle = tree.register_forward_pre_hook(panic)
        assert post(one, "/v1/completions", model="base", **body).status_code == 500
        ok()
        handle.remove()
        assert one.worker.restarts == 0

        def replaced(fault, stalled_after=120.0):
            before, one.worker.stalled_after = one.worker.restarts, stalled_after
            engine = one.worker.engine
            engine.step = lambda: bool(engine.inbox) and fault()  # not before somebody asks
            code = post(one, "/v1/completions", model="lora", **body).status_code
            one.worker.stalled_after = 120.0
            assert code in (500, 503)
            until = time.monotonic() + 120
            while not (one.worker.restarts > before and one.worker.healthy) and time.monotonic() < until:
                time.sleep(0.02)
            ok()
            return one.worker.restarts > before

        def die():
            raise SystemExit

        wake = threading.Event()
        assert replaced(die)
        assert replaced(lambda: wake.wait(240), stalled_after=2.0)
        wake.set()
        ok()
        assert settled(one)
        figure(3, 3)


def test_fault_F12_readiness_is_red_while_the_thread_hangs(base, figure):
    """Red once the heartbeat is older than allowed, with 503 for whoever asks; green again at most 5 s later."""
    allowed, red, wake = 2.0, threading.Event(), threading.Event()
    with running(base, {}, stalled_after=120.0) as one, concurrent.futures.ThreadPoolExecutor(1) as pool:
        post(one, "/v1/completions", model="base", prompt="Hello", max_tokens=1)
        worker, engine, revive = one.worker, one.worker.engine, one.worker.revive

        def after_red():  # so that the watchdog, which looks once a second, is not quicker than this test
            if not worker.healthy and red.wait(240):
                revive()

        worker.revive = after_red
        engine.step = lambda: bool(engine.inbox) and wake.wait(240)
        hung = pool.submit(post, one, "/v1/completions", model="base", prompt="Hello", max_tokens=1)
        while not engine.inbox:
            time.sleep(0.01)
        worker.stalled_after = allowed
        took = until_ready(one, False)
        refused = post(one, "/v1/completions", model="base", prompt="Hello", max_tokens=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert get(f"{one.url}/healthz").status_code == 200
        red.set()
        back = until_ready(one, True)
        worker.stalled_after = 120.0
        assert hung.result().status_code == 500
        wake.set()
        assert post(one, "/v1/completions", model="base", prompt="Hello", max_tokens=1).status_code == 200
        assert worker.restarts == 1
        figure((took <= allowed + 1) + (back <= 5), 2)


def until_ready(server, wanted):
    """Seconds until /readyz says so, less what this process had to wait for a processor."""
    start, last, lost = time.monotonic(), time.monotonic(), 0.0
    while (get(f"{server.url}/readyz").status_code == 200) is not wanted:
        time.sleep(0.02)
        now = time.monotonic()
        lost, last = lost + max(0.0, now - last - 0.1), now
        assert now - start < 240
    return time.monotonic() - start - lost


def test_fault_F12_a_tokenizer_panic_is_one_500(server, monkeypatch):
    def panic(*_):
        raise Panic("regex")

    monkeypatch.setattr(answers, "completion_job", panic)
    failed = post(server, "/v1/completions", model="base", prompt="a")
    assert failed.status_code == 500
    assert set(failed.json()["error"]) == {"message", "type", "param", "code"}
    monkeypatch.undo()
    assert post(server, "/v1/completions", model="base", prompt="a", max_tokens=1).status_code == 200


def test_fault_F12_a_panic_while_streaming_is_told(server, monkeypatch):
    """A stream whose text cannot be made ends with an error line, not with silence until the deadline."""
    from luthier.serve.text import Stream

    def panic(*_):
        raise Panic("decoder")

    monkeypatch.setattr(Stream, "push", panic)
    start = time.monotonic()
    text = post(server, "/v1/completions", model="base", prompt="Hello", max_tokens=5, stream=True, temperature=0).text
    assert time.monotonic() - start < server.limits.deadline_s / 2
    assert json.loads(text.strip().removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert post(server, "/v1/completions", model="base", prompt="Hello", max_tokens=5, temperature=0).status_code == 500
    monkeypatch.undo()
    assert settled(server)


def test_fault_F12_a_request_for_a_thread_that_was_just_replaced_is_told(server):
    """`submit` may still hold the engine that the watchdog takes away."""
    from luthier.serve.request import Request, Sampling

    told, worker = [], server.worker
    request = Request(server.registry.get("base"), [1, 2], Sampling(), told.append)

    class Taken:
        def submit(self, request):
            worker.engine = real

    real, worker.engine = worker.engine, Taken()
    worker.submit(request)
    assert worker.engine is real
    assert request.cancelled
    assert told[0].finish == "error"


def test_fault_F9_prompts_of_many_threads_are_those_of_one(server, monkeypatch, figure):
    """Whether control tokens mean themselves is a mode of the shared tokenizer: two prompts at once would mix it."""
    from luthier.serve.schema import Chat

    stop = server.registry.base.tokenizer.eos_token
    texts = [f"say {stop} {number} please {stop}" for number in range(12)]

    def ids(text):
        body = Chat(model="base", messages=[{"role": "user", "content": text}], max_tokens=1)
        return answers.chat_job(server, body).prompts[0]

    alone, inside, most = [ids(text) for text in texts], [], []
    plain = templates.tokenize_plain

    def watched(*given):
        inside.append(1)
        time.sleep(0.001)
        most.append(len(inside))
        try:
            return plain(*given)
        finally:
            inside.pop()

    monkeypatch.setattr(templates, "tokenize_plain", watched)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ids, texts * 2))
    assert max(most) == 1
    figure(sum(one == other for one, other in zip(found, alone * 2, strict=True)), 24)


def test_fault_F8_an_unload_during_a_load_does_not_stop_the_server(server, root, monkeypatch):
    """Loads take seconds; whoever waits for one must not hold the event loop, nor the threads that prompts need."""
    from luthier.serve import registry

    begun, go, opened = threading.Event(), threading.Event(), registry._opened

    def slow(*given):
        begun.set()
        assert go.wait(300)
        return opened(*given)

    monkeypatch.setattr(registry, "_opened", slow)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        loads = [pool.submit(post, server, "/v1/adapters", name=f"l{n}", path="lora") for n in range(12)]
        assert begun.wait(120)
        gone = pool.submit(delete, f"{server.url}/v1/adapters/l0")
        asked = post(server, "/v1/completions", model="base", prompt="Hello", max_tokens=1)
        assert asked.status_code == 200
        assert get(f"{server.url}/healthz").status_code == 200
        assert not gone.done()
        go.set()
        assert {load.result().status_code for load in loads} == {200}
        assert gone.result().status_code in (200, 404)
    for number in range(12):
        delete(f"{server.url}/v1/adapters/l{number}")
    assert server.registry.names() == ["base", *KINDS]


def test_fault_F15_browsers_are_kept_out(base, figure):
    """DNS rebinding, cross-origin posts, preflights: refused, and no header that would allow them."""
    with running(base, {}, hosts=("127.0.0.1", "localhost")) as local:

        def code(method, path, **headers):
            answer = httpx.request(
                method, local.url + path, headers=headers, content=b"{}" if method == "POST" else None, timeout=60
            )
            assert not [name for name in answer.headers if name.startswith("access-control")]
            return answer.status_code

        evil = f"http://evil.example:{local.port}"
        codes = [
            code("GET", "/v1/models", Host="evil.example"),
            code("GET", "/v1/models", Host=f"evil.example:{local.port}"),
            code("GET", "/v1/models", Origin=evil),
            code("GET", "/v1/models", Origin="null"),
            code("POST", "/v1/adapters", Origin=evil, **{"Content-Type": "text/plain"}),
            code("POST", "/v1/chat/completions", Origin="http://127.0.0.1:1"),
            code("OPTIONS", "/v1/chat/completions", Origin=evil, **{"Access-Control-Request-Method": "POST"}),
        ]
        assert code("GET", "/v1/models", Origin=local.url) == 200
        assert code("GET", "/v1/models", Host="localhost") == 200
    figure(codes.count(403), 7)


def test_fault_F15_an_open_address_needs_a_key(base, monkeypatch):
    from luthier.serve.app import serve

    monkeypatch.delenv("LUTHIER_API_KEY", raising=False)
    with pytest.raises(LuthierError, match="no key"):
        serve(base, {}, host="0.0.0.0", port=0)


def test_fault_F4_pieces_of_http_that_are_no_requests(server, figure):
    """Bytes that no client sends: an answer or a closed connection, and the server lives."""
    pieces = [
        b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n\r\n", b"GET " + b"a" * 70_000,
        raw("/v1/completions", b"{}", "Content-Length: 5"), raw("/v1/completions", b"{}", "Transfer-Encoding: gzip"),
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]  # fmt: skip
    alive = 0
    for piece in pieces:
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as wire:
            wire.sendall(piece)
            wire.shutdown(socket.SHUT_WR)
            told = wire.recv(100)
        assert told == b"" or b" 5" not in told[:13], (piece[:40], told)
        alive += get(f"{server.url}/healthz").status_code == 200
    figure(alive, len(pieces))
