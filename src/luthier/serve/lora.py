"""Many LoRAs in one forward: rows of one adapter lie together, and all adapters are one batched product.

    A [adapters, in, r], B [adapters, r, out] with the scale in it; rows of the step are sorted by adapter
    y[rows of g] += (x[rows of g] A[g]) B[g]        for all g at once where they have about as many rows

Layers that read the same input (query, key, value; gate, up) are one group and have their A side by side: one product
for all of them. Ranks are filled up with zeros to the widest of the set. Rows of the base are touched by nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.serve.adapters import Served
from luthier.serve.packing import MOST_ROWS, Product, packed
from luthier.serve.readers import readers

KEPT_SETS = 8
PADDING = 2
"""Batched with padding while at most this many times the rows are computed; above it adapter by adapter."""
MANY = 16
"""Rows of each adapter from which it is multiplied by itself, since such products are large enough."""

Run = tuple[Served, int]
"""So many neighbouring rows of one adapter."""


@dataclass(frozen=True)
class _Place:
    """Where a layer's columns lie in x A and in the results of its group, and its own B."""

    ranks: slice
    outs: slice
    b: Tensor  # [adapters, r, out]


@dataclass(frozen=True)
class _Block:
    """The stacked factors of one group of layers."""

    a: Tensor  # [adapters, in, sum of ranks]
    places: dict[int, _Place]
    """Of those layers of the group, by number, that any adapter of the set changes."""


@dataclass(frozen=True)
class _Set:
    """The factors of one set of adapters, with the adapters kept alive by it."""

    members: tuple[Served, ...]
    blocks: dict[int, _Block]  # number of the group →


@dataclass(frozen=True)
class _One:
    """Rows `start:stop` belong to one adapter."""

    start: int
    stop: int
    member: int

    def inner(self, x: Tensor, a: Tensor) -> Tensor:
        return _rows(x, self) @ a[self.member]

    def outer(self, h: Tensor, b: Tensor, y: Tensor) -> None:
        _rows(y, self).addmm_(h, b[self.member])


@dataclass(frozen=True)
class _Even:
    """Rows `start:stop` are all adapters of the set in order, each with as many."""

    start: int
    stop: int

    def inner(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.bmm(_rows(x, self).view(len(a), -1, x.shape[1]), a)

    def outer(self, h: Tensor, b: Tensor, y: Tensor) -> None:
        _rows(y, self).view(len(b), -1, y.shape[1]).baddbmm_(h, b)


@dataclass(frozen=True)
class _Padded:
    """Rows `start:stop`, each adapter's filled up to as many: `index` takes them there, `back` from there."""

    start: int
    stop: int
    index: Tensor
    back: Tensor

    def inner(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.bmm(x.index_select(0, self.index).view(len(a), -1, x.shape[1]), a)

    def outer(self, h: Tensor, b: Tensor, y: Tensor) -> None:
        self.bring_back(torch.bmm(h, b), y)

    def bring_back(self, change: Tensor, y: Tensor) -> None:
        _rows(y, self).add_(change.view(-1, y.shape[1]).index_select(0, self.back))


_Part = _One | _Even | _Padded


def _rows(x: Tensor, part: _Part) -> Tensor:
    return x if not part.start and part.stop == x.shape[0] else x[part.start : part.stop]


@dataclass(eq=False)
class _Group:
    """Layers that read the same input, and what the first of them left for the others in the running forward."""

    number: int
    layers: list[nn.Linear]
    plain: list[Callable[[Tensor], Tensor]]
    product: Product | None
    """All of them at once, where their weights are packed."""
    x: Tensor | None = None
    made: list[Tensor | None] = field(default_factory=list)
    """The others' results for `x`, each taken once."""
    inner: tuple[Tensor, Sequence[_Part], list[Tensor]] | None = None
    """(x, parts of the step, x A of every part), where the results are not made at once."""


class LoraLanes:
    """Forwards of the linear layers of the engine's own tree; `using` names the adapter of every row of the next one.

    `run` is a forward that shows which layers read the same input. A base weight that `pack_bytes` has room for is
    multiplied in the processor's own layout (`serve.packing`).
    """

    def __init__(self, model: nn.Module, pack_bytes: int = 0, run: Callable[[], Any] | None = None):
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._sets: OrderedDict[tuple[int, ...], _Set] = OrderedDict()
        self._current: _Set | None = None
        self._parts: Sequence[_Part] = ()
        self._rows = 0
        names = readers(linears, run)
        layers = [[linears[name] for name in group] for group in names]
        products = packed(layers, pack_bytes)
        self._groups = [
            _Group(number, some, [layer.forward for layer in some], products.get(number))
            for number, some in enumerate(layers)
        ]
        self._place = {name: (group, at) for group, some in enumerate(names) for at, name in enumerate(some)}
        for group in self._groups:
            for at, layer in enumerate(group.layers):
                setattr(layer, "forward", self._forward(group, at))  # noqa: B010

    def using(self, *chapters: Sequence[Run]) -> None:
        """The rows of the coming forward in order; in each chapter the rows of an adapter stand together."""
        present = {served.version: served for runs in chapters for served, _ in runs if served.lora}
        if not present:
            self._current = None
            return
        self._current = self._set(tuple(present[version] for version in sorted(present)))
        member = {served.version: index for index, served in enumerate(self._current.members)}
        device = next(iter(self._current.blocks.values())).a.device
        parts: list[_Part] = []
        self._rows = 0
        for runs in chapters:
            spans = []
            for version, some in groupby(runs, key=lambda run: run[0].version):
                start, self._rows = self._rows, self._rows + sum(count for _, count in some)
                if version in member:
                    spans.append(_One(start, self._rows, member[version]))
            parts += _together(spans, len(member), device)
        self._parts = parts

    def reach(self, head: Any) -> bool:
        """Whether an adapter of the running forward changes the output layer, whose rows are others."""
        if self._current is None or head is None:
            return False
        return any(self._groups[number].layers == [head[1]] for number in self._current.blocks)

    def _set(self, members: tuple[Served, ...]) -> _Set:
        key = tuple(served.version for served in members)
        known = key if key in self._sets else self._wider(key)
        if known:
            self._sets.move_to_end(known)
            return self._sets[known]
        made = self._sets[key] = self._stacked(members)
        while len(self._sets) > KEPT_SETS:
            self._sets.popitem(last=False)
        return made

    def _wider(self, key: tuple[int, ...]) -> tuple[int, ...]:
        """A set that holds these adapters and few others: requests that end must not cause a new one each."""
        wide = [known for known in self._sets if len(known) <= 2 * len(key) + 2 and set(key) <= set(known)]
        return min(wide, key=len, default=())

    def _stacked(self, members: tuple[Served, ...]) -> _Set:
        loras = [served.lora or {} for served in members]
        changed: dict[int, dict[int, list[Any]]] = {}  # group → layer → the adapters' parts, None where there is none
        for name in dict.fromkeys(name for lora in loras for name in lora):
            group, at = self._place[name]
            changed.setdefault(group, {})[at] = [lora.get(name) for lora in loras]
        return _Set(members, {group: _block(self._groups[group].layers, some) for group, some in changed.items()})

    def _forward(self, group: _Group, at: int) -> Callable[[Tensor], Tensor]:
        plain, product, several = group.plain[at], group.product, len(group.layers) > 1
        widths = [layer.out_features for layer in group.layers]

        def by_itself(x: Tensor) -> Tensor:
            y = plain(x)
            current = self._current
            if current is not None and (block := current.blocks.get(group.number)) is not None and at in block.places:
                self._add(group, at, block, x, y)
            return y

        def first(x: Tensor) -> Tensor:
            assert product is not None
            if x.numel() > MOST_ROWS * x.shape[-1]:
                return by_itself(x)
            y = product(x)
            current = self._current
            if current is not None and (block := current.blocks.get(group.number)) is not None:
                self._add(group, None, block, x, y)
            if not several:
                return y
            made = list(y.split_with_sizes(widths, dim=-1))
            group.x, group.made = x, [None, *made[1:]]
            return made[0]

        def other(x: Tensor) -> Tensor:
            if x is not group.x or (y := group.made[at]) is None:
                return by_itself(x)
            group.made[at] = None
            if at == len(widths) - 1:
                group.x = None
            return y

        if product is None:
            return by_itself
        return other if at else first

    def _add(self, group: _Group, at: int | None, block: _Block, x: Tensor, y: Tensor) -> None:
        """y += the rows' own adapters, in place; y is of one layer, or with `at` None of the whole group."""
        flat = y.view(-1, y.shape[-1])
        if flat.shape[0] != self._rows:
            raise ModelError(f"a layer sees {flat.shape[0]} rows, {self._rows} were announced")
        same = y.dtype == block.a.dtype
        change = flat if same else torch.zeros_like(flat, dtype=block.a.dtype)
        rows = x.reshape(-1, x.shape[-1]).to(block.a.dtype)
        if at is not None:
            for part, h in zip(self._parts, self._taken(group, at, block, x, rows), strict=True):
                part.outer(h, block.places[at].b, change)
        elif len(group.layers) == 1:
            for part in self._parts:
                part.outer(part.inner(rows, block.a), block.places[0].b, change)
        else:
            for part in self._parts:
                self._add_all(part, part.inner(rows, block.a), group, block, change)
        if not same:
            flat += change.to(flat.dtype)

    def _add_all(self, part: _Part, h: Tensor, group: _Group, block: _Block, y: Tensor) -> None:
        """The columns of all layers of a group. Padded rows are brought back once for all of them."""
        if isinstance(part, _Padded) and len(block.places) == len(group.layers):
            change = torch.cat([torch.bmm(h[..., place.ranks], place.b) for place in block.places.values()], dim=-1)
            part.bring_back(change, y)
            return
        for place in block.places.values():
            part.outer(h[..., place.ranks], place.b, y[:, place.outs])

    def _taken(self, group: _Group, at: int, block: _Block, x: Tensor, rows: Tensor) -> list[Tensor]:
        """This layer's columns of x A for every part, computed once for all layers of the group that read x."""
        ranks = block.places[at].ranks
        known = group.inner
        if known is None or known[0] is not x or known[1] is not self._parts:
            if at != min(block.places):  # it reads something else than the first of them
                return [part.inner(rows, block.a[..., ranks]) for part in self._parts]
            known = group.inner = (x, self._parts, [part.inner(rows, block.a) for part in self._parts])
        if at == max(block.places):
            group.inner = None
        return [h[..., ranks] for h in known[2]]


def _block(layers: Sequence[nn.Linear], changed: dict[int, list[Any]]) -> _Block:
    """The factors of one group: layer → the adapters' parts, None for an adapter that leaves it alone."""
    blocks, places, start, left = [], {}, 0, 0
    for at, layer in enumerate(layers):
        if at in changed:
            parts = [(index, part) for index, part in enumerate(changed[at]) if part is not None]
            rank, like = max(len(part.a) for _, part in parts), parts[0][1]
            a = like.a.new_zeros(len(changed[at]), like.a.shape[1], rank)
            b = like.b.new_zeros(len(changed[at]), rank, like.b.shape[0])
            for index, part in parts:
                a[index, :, : len(part.a)] = part.a.t()
                b[index, : len(part.a)] = part.b.t() * part.scale
            blocks.append(a)
            places[at] = _Place(slice(start, start + rank), slice(left, left + layer.out_features), b)
            start += rank
        left += layer.out_features
    return _Block(torch.cat(blocks, dim=2), places)


def _together(spans: list[_One], members: int, device: torch.device) -> Sequence[_Part]:
    """The spans of one chapter as one batched product where that does not compute much more than is needed."""
    if len(spans) < 3:
        return spans
    sizes = [span.stop - span.start for span in spans]
    start, stop, most = spans[0].start, spans[-1].stop, max(sizes)
    side_by_side = all(one.stop == other.start and one.member < other.member for one, other in pairwise(spans))
    if not side_by_side or min(sizes) >= MANY or members * most > PADDING * (stop - start):
        return spans
    if len(spans) == members and len(set(sizes)) == 1:
        return [_Even(start, stop)]
    index: list[int] = [start] * (members * most)
    back: list[int] = []
    for span, size in zip(spans, sizes, strict=True):
        first = span.member * most
        index[first : first + size] = range(span.start, span.stop)
        back += range(first, first + size)
    return [_Padded(start, stop, _ids(index, device), _ids(back, device))]


def _ids(values: Any, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
