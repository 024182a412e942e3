"""A tiny random model with an adapter that does something, rows of questions and of classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luthier.core.types import Example, Source, Turn
from luthier.data import encode
from luthier.data.settings import DataSettings
from luthier.health.plants.world import WORDS, blank


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    return blank(tmp_path_factory.mktemp("base"))


def shake(adapted, size=0.05):
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, weight in sorted(adapted.parameters_by_name().items()):
            weight.add_(torch.randn(weight.shape, generator=source) * size)
    return adapted.eval()


def words(source, count):
    return " ".join(f"w{i}" for i in source.integers(0, WORDS, count))


def encoded(adapted, examples, labels=None):
    settings = DataSettings(train="x", max_length=60, cache=False)
    return encode.encode(
        examples, adapted.template, adapted.base.tokenizer, settings, adapted.task.name,
        labels=labels, stop_id=adapted.base.stop_ids[0], cache=None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def questions(world):
    adapted = shake(world.fresh({"name": "lora", "r": 4}, 1))
    source = np.random.default_rng(0)
    examples = [
        Example(
            f"q.json:{i}",
            (Turn("user", words(source, 3)), Turn("assistant", words(source, int(source.integers(1, 6))))),
            Source("q.json" if i % 2 else "other.json", i),
        )
        for i in range(40)
    ]
    return SimpleNamespace(adapted=adapted, examples=examples, rows=encoded(adapted, examples))


@pytest.fixture(scope="session")
def labelled(world):
    labels = ("even", "odd", "third")
    adapted = shake(world.fresh({"name": "lora", "r": 4}, 1, labels), 0.2)
    source = np.random.default_rng(0)
    examples = [
        Example(f"c.csv:{i}", (Turn("text", words(source, 4)),), Source("c.csv", i), label=labels[i % 3])
        for i in range(36)
    ]
    return SimpleNamespace(adapted=adapted, examples=examples, labels=labels, rows=encoded(adapted, examples, labels))
