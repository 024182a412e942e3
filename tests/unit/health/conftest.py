"""A tiny random base and adapters that do something."""

from __future__ import annotations

import pytest
import torch

from luthier.health.plants.world import blank


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    return blank(tmp_path_factory.mktemp("base"))


@pytest.fixture
def shaken(world):
    """method → AdaptedModel whose weights all moved a little."""

    def make(method, size=0.05, labels=()):
        adapted = world.fresh(method, 1, labels)
        source = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, weight in sorted(adapted.parameters_by_name().items()):
                weight.add_(torch.randn(weight.shape, generator=source) * size)
        return adapted.eval()

    return make
