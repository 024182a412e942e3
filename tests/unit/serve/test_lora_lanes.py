"""Rows of many LoRAs at once are what each row is by itself, however the rows are spread over the adapters."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.serve import lora, packing
from luthier.serve.adapters import LoraPart


class Block(nn.Module):
    """q and k read x, v reads another input of the same width."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(24, 16), nn.Linear(24, 8, bias=False), nn.Linear(24, 8)

    def forward(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x.square())], dim=-1)


def adapter(version, names, rank, source):
    shapes = {"q": 16, "k": 8, "v": 8}
    parts = {
        name: LoraPart(
            torch.randn(rank, 24, generator=source), torch.randn(shapes[name], rank, generator=source), 0.5 * version
        )
        for name in names
    }
    return SimpleNamespace(version=version, lora=parts)


@pytest.fixture
def world():
    source = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    block = Block()
    ranks = [(("q", "k", "v"), 4), (("q", "k"), 2), (("v",), 3), (("q", "k", "v"), 1)]
    return block, [adapter(number + 1, *one, source) for number, one in enumerate(ranks)]


def alone(block, served, x):
    """One row through one adapter, by the definition."""
    made = []
    for name, entry in (("q", x), ("k", x), ("v", x.square())):
        y = nn.functional.linear(entry, *dict(getattr(block, name).named_parameters()).values())
        if served.lora and name in served.lora:
            part = served.lora[name]
            y = y + part.scale * (entry @ part.a.T) @ part.b.T
        made.append(y)
    return torch.cat(made, dim=-1)


PLAIN = SimpleNamespace(version=0, lora=None)
COUNTS = {
    "even": [(2, 2, 2, 2)],
    "padded": [(3, 2, 2, 1)],
    "lopsided": [(9, 1, 1, 1)],
    "two": [(2, 0, 0, 3)],
    "three of four": [(2, 1, 0, 2)],
    "two chapters": [(1, 1, 1, 1), (5, 0, 2, 7)],
}


@pytest.mark.parametrize("bare", [0, 2], ids=["no base rows", "base rows"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@torch.inference_mode()
def test_each_row_is_what_it_is_alone(world, counts, bare):
    block, adapters = world
    lanes = lora.LoraLanes(block)
    lanes._set(tuple(adapters))  # a set that is wider than what is present
    for _ in range(3):  # the second time `v` is known to read something else
        chapters = [[*((a, n) for a, n in zip(adapters, some, strict=True) if n), (PLAIN, bare)] for some in counts]
        rows = [served for runs in chapters for served, count in runs for _ in range(count)]
        x = torch.randn(1, len(rows), 24, generator=torch.Generator().manual_seed(len(rows)))
        lanes.using(*chapters)
        found = block(x)[0]
        for row, served in enumerate(rows):
            torch.testing.assert_close(found[row], alone(block, served, x[0, row]), atol=2e-5, rtol=1e-5)
    assert lanes._alone == {"v"}


def test_layers_that_read_one_input_are_one_product(world):
    block, adapters = world
    lanes = lora.LoraLanes(block)
    both = [served for served in adapters if set(served.lora) == {"q", "k"}]
    made = lanes._set(tuple(both))
    assert {place.group for name, place in made.places.items() if name != "v"} == {"|24"}
    assert made.a["|24"].shape == (1, 24, 4)  # ranks 2 and 2 side by side


def test_a_wrong_number_of_rows_is_refused(world):
    block, adapters = world
    lanes = lora.LoraLanes(block)
    lanes.using([(adapters[0], 3)])
    with torch.inference_mode(), pytest.raises(lora.ModelError, match="sees 2 rows, 3 were announced"):
        block(torch.zeros(1, 2, 24))


def test_adapters_of_more_digits_than_the_base(world):
    """bfloat16 layers, float32 factors: the change is computed in float32 and rounded once."""
    block, adapters = world
    block.to(torch.bfloat16)
    lanes = lora.LoraLanes(block)
    x = torch.randn(1, 4, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        plain = block(x)
        lanes.using([(served, 1) for served in adapters])
        found = block(x)
        change = torch.stack([part.scale * (x[0, 0].float() @ part.a.T) @ part.b.T for part in [adapters[0].lora["q"]]])
    torch.testing.assert_close(found[0, 0, :16], (plain[0, 0, :16] + change[0].bfloat16()), atol=0, rtol=0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not there")
def test_packed_weights_are_the_same_product_within_their_bytes(monkeypatch):
    monkeypatch.setattr(packing, "SMALLEST", 1 << 17)
    torch.manual_seed(0)
    large, small, tiny = nn.Linear(512, 700), nn.Linear(512, 300, bias=False), nn.Linear(8, 8)
    found = packing.packed([tiny, small, large], 512 * 700 * 4 + 100)
    assert set(found) == {large}  # the largest first, the next does not fit
    both = packing.packed([tiny, small, large], 1 << 30)
    assert set(both) == {large, small}
    for layer, product in both.items():
        for rows in (1, 3, 16, 40):
            x = torch.randn(1, rows, 512)
            with torch.inference_mode():
                torch.testing.assert_close(product(x), layer(x), atol=1e-5, rtol=1e-5)
    assert packing.packed([large.bfloat16()], 1 << 30) == {}
