"""One key and value head for all queries (Falcon): prefixes of the right width, and every property that they touch."""

from __future__ import annotations

import properties
import pytest
from cells import Cell

from luthier.core.errors import ModelError


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt", "bottleneck"])
def test_it_is_attached_trained_read_and_said(name: str) -> None:
    """Count, gradients, batches, saving and generation; the flat layout is refused, for its attention is its own."""
    cell = Cell(name, "falcon", False)
    for check in (properties.count, properties.gradients, properties.batching, properties.reload):
        assert check(cell) == "yes", check.__name__
    assert properties.generation(cell) == "yes"
    with pytest.raises(ModelError, match="cannot be replaced"):
        properties.packed(cell)
