"""The built-in base with an adapter of every kind, with strong random weights, and a server over them."""

import contextlib
import threading
import time

import httpx
import torch

from luthier.adapted import attach
from luthier.data.templates import choose
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve import app, attention
from luthier.serve.engine import Engine
from luthier.serve.registry import Registry
from luthier.serve.worker import Worker
from luthier.tasks import TASKS

KINDS = {
    "lora-a": {"name": "lora", "r": 4, "targets": "all-linear"},
    "lora-b": {"name": "lora", "r": 8},
    "lora-c": {"name": "lora", "r": 2, "rslora": True},
    "dora": {"name": "lora", "r": 4, "dora": True},
    "ia3": "ia3",
    "prefix-a": {"name": "prefix", "length": 4},
    "prefix-b": {"name": "prefix", "length": 7},
    "prompt": {"name": "prompt", "length": 5},
    "p_tuning": {"name": "p_tuning", "length": 3, "hidden": 16},
    "bottleneck": {"name": "bottleneck", "reduction": 4},
    "dynamic": {"name": "dynamic_prefix", "length": 3, "hidden": 8},
    "stack": {"name": "stack", "methods": ({"name": "lora", "r": 2}, {"name": "prefix", "length": 3})},
    "last": {"name": "last_layers", "count": 1},
    "library": {"name": "multitask_prefix", "length": 4, "tasks": ("places", "jobs")},
}
CLASSES = ("chess", "dancing", "football")


def made(root, name, method, task="instruct", labels=(), number=0):
    """One adapter folder."""
    chosen = TASKS.parse(task)
    base = load_base(
        ModelSettings(path="builtin"), task=chosen.name, labels=(labels or None) if chosen.has_head else None
    )
    template = choose("auto" if chosen.has_head else "chat", base.tokenizer, chosen.name)
    adapted = attach(base, method, chosen, template, seed=number, labels=labels)
    source = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.add_(torch.randn(weight.shape, generator=source) * 0.12)
    adapted.save(root / name)
    return root / name


@contextlib.contextmanager
def running(
    base, folders, root=None, slots=8, stalled_after=30.0, build=None, way=attention.NAME, name="base", **limits
):
    """A server in a thread of this process, as `luthier serve` configures it; `.url` says where."""
    registry = Registry(base, name, (root,) if root else (), way)
    for name, folder in folders.items():
        registry.load(name, folder)
    worker = Worker(build or (lambda: Engine(base, slots=slots)), stalled_after)
    server = app.Server(registry, worker, app.Limits(**limits))
    sockets = app.listen("127.0.0.1", 0)
    http = app.listener(app.configure(server, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=http.run, args=(sockets,), daemon=True)
    thread.start()
    until = time.monotonic() + 120
    while not http.started and time.monotonic() < until:
        time.sleep(0.01)
    server.port = sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        http.should_exit = True
        thread.join(timeout=30)
        worker.close(0)


def get(url, **options):
    """httpx.get that waits for a loaded machine."""
    return httpx.get(url, timeout=300, **options)


def delete(url):
    """httpx.delete that waits for a loaded machine."""
    return httpx.delete(url, timeout=300)


def settled(server, seconds=60.0):
    """Whether nothing is in flight and every slot is free, within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        engine = server.worker.engine
        if not server.inflight and engine.idle and len(engine.free) == engine.pool.shape[1]:
            return True
        time.sleep(0.02)
    return False
