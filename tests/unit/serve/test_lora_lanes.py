"""Rows of many LoRAs at once are what each row is by itself, however the rows are spread over the adapters."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.serve import lora, packing
from luthier.serve.adapters import LoraPart
from luthier.serve.readers import readers


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
    "many": [(17, 16, 20, 18)],
}
HAS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not there")


def shown(block):
    """A forward that shows what reads what."""
    return lambda: block(torch.zeros(1, 1, 24))


@pytest.mark.parametrize("way", ["alone", "groups", pytest.param("packed", marks=HAS_ONEDNN)])
@pytest.mark.parametrize("bare", [0, 2], ids=["no base rows", "base rows"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@torch.inference_mode()
def test_each_row_is_what_it_is_alone(world, counts, bare, way, monkeypatch):
    block, adapters = world
    monkeypatch.setattr(packing, "SMALLEST", 1)
    lanes = lora.LoraLanes(block, (1 << 20) * (way == "packed"), None if way == "alone" else shown(block))
    lanes._set(tuple(adapters))  # a set that is wider than what is present
    for size in (1, 2):
        chapters = [[*((a, n) for a, n in zip(adapters, some, strict=True) if n), (PLAIN, bare)] for some in counts]
        rows = [served for runs in chapters for served, count in runs for _ in range(count)]
        x = torch.randn(1, len(rows), 24, generator=torch.Generator().manual_seed(len(rows) * size))
        lanes.using(*chapters)
        found = block(x)[0]
        for row, served in enumerate(rows):
            torch.testing.assert_close(found[row], alone(block, served, x[0, row]), atol=2e-5, rtol=1e-5)
    assert all(group.x is None and group.inner is None for group in lanes._groups)  # nothing is kept alive


def test_layers_that_read_one_input_are_one_product(world):
    block, adapters = world
    lanes = lora.LoraLanes(block, run=shown(block))
    assert {tuple(layer.out_features for layer in group.layers) for group in lanes._groups} == {(16, 8), (8,)}
    both = [served for served in adapters if set(served.lora) == {"q", "k"}]
    made = lanes._set(tuple(both))
    assert [factors.a.shape for factors in made.blocks.values()] == [(1, 24, 4)]  # ranks 2 and 2 side by side


@pytest.mark.parametrize("packing_bytes", [0, pytest.param(1 << 20, marks=HAS_ONEDNN)])
@torch.inference_mode()
def test_layers_that_do_not_read_what_they_were_seen_to_read_are_right_all_the_same(world, packing_bytes, monkeypatch):
    """The forward that shows the groups may take another way than a later one."""
    block, adapters = world
    monkeypatch.setattr(packing, "SMALLEST", 1)
    lanes = lora.LoraLanes(block, packing_bytes, lambda: (block.q(zeros := torch.zeros(1, 1, 24)), block.v(zeros)))
    assert {len(group.layers) for group in lanes._groups} == {1, 2}  # q and v, and k that was not called
    for _ in range(2):
        lanes.using([(served, 2) for served in adapters])
        x = torch.randn(1, 8, 24, generator=torch.Generator().manual_seed(3))
        found, again = block(x)[0], block.v(x)[0]
        for row in range(8):
            torch.testing.assert_close(found[row], alone(block, adapters[row // 2], x[0, row]), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(again, block.v(x.clone())[0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(block.q(x)[0], found[:, :16], atol=2e-5, rtol=1e-5)  # called twice with one input


def test_what_reads_what():
    layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a", "b", "c", "d", "never")})
    x, y = torch.zeros(1, 4), torch.zeros(1, 4)

    def run():
        for name, entry in (("a", x), ("b", x), ("c", y), ("d", x), ("d", x)):
            layers[name](entry)

    found = readers(dict(layers.items()), run)
    assert {frozenset(group) for group in found} == {
        frozenset({"a", "b"}), frozenset({"c"}), frozenset({"d"}), frozenset({"never"})
    }  # fmt: skip
    assert len(found) == 4
    assert not any(layer._forward_pre_hooks for layer in layers.values())
    assert readers(dict(layers.items()), lambda: 1 / 0) == [(name,) for name in layers]


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


@HAS_ONEDNN
def test_packed_weights_are_the_same_product_within_their_bytes(monkeypatch):
    monkeypatch.setattr(packing, "SMALLEST", 1 << 17)
    torch.manual_seed(0)
    large, other, small, tiny = (
        nn.Linear(512, 700),
        nn.Linear(512, 90),
        nn.Linear(512, 300, bias=False),
        nn.Linear(8, 8),
    )
    groups = [[tiny], [small], [large], [small, other]]
    found = packing.packed(groups, 512 * 700 * 4 + 100)
    assert set(found) == {2}  # the largest first, the next does not fit
    both = packing.packed(groups, 1 << 30)
    assert set(both) == {1, 2, 3}
    for number, product in both.items():
        for rows in (1, 3, 16, 40):
            x = torch.randn(1, rows, 512)
            with torch.inference_mode():
                expected = torch.cat([layer(x) for layer in groups[number]], dim=-1)
                torch.testing.assert_close(product(x), expected, atol=1e-5, rtol=1e-5)
    assert packing.packed([[large.bfloat16()]], 1 << 30) == {}
