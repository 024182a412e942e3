"""Adapters of every kind as folders: nothing is trained."""

from types import SimpleNamespace

import pytest
import torch
from serving_world import CLASSES, KINDS, made

from luthier.models.load import load_base
from luthier.models.settings import ModelSettings


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
