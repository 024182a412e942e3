"""The built-in base with an adapter of every kind, with strong random weights, as folders: nothing is trained."""

from types import SimpleNamespace

import pytest
import torch

from luthier.adapted import attach
from luthier.data.templates import choose
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
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
}
CLASSES = ("chess", "dancing", "football")


def made(root, name, method, task="instruct", labels=(), number=0):
    """One adapter folder."""
    base = load_base(ModelSettings(path="builtin"), task=task, labels=labels or None)
    chosen = TASKS.parse(task)
    template = choose("chat" if task == "instruct" else "auto", base.tokenizer, task)
    adapted = attach(base, method, chosen, template, seed=number, labels=labels)
    source = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.add_(torch.randn(weight.shape, generator=source) * 0.12)
    adapted.save(root / name)
    return root / name


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """name → folder, and the root they lie in."""
    root = tmp_path_factory.mktemp("adapters")
    folders = {name: made(root, name, method, number=index) for index, (name, method) in enumerate(KINDS.items())}
    return SimpleNamespace(root=root, folders=folders)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A classification run's adapter folder."""
    return made(tmp_path_factory.mktemp("classify"), "clubs", {"name": "lora", "r": 4}, "classify", CLASSES, 99)


@pytest.fixture(scope="session")
def base():
    """The untouched base."""
    return load_base(ModelSettings(path="builtin"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
