"""Many LoRAs in one forward: rows of one adapter lie together, and all adapters are one batched product.

    A [adapters, in, r], B [adapters, r, out] with the scale in it; rows of the step are sorted by adapter
    y[rows of g] += (x[rows of g] A[g]) B[g]        for all g at once where they have about as many rows

Layers that read the same input (query, key, value; gate, up) have their A side by side: one product for all of them.
Ranks are filled up with zeros to the widest of the set. Rows of the base are touched by nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.serve.adapters import Served
from luthier.serve.packing import packed

KEPT_SETS = 8
PADDING = 2
"""Batched with padding while at most this many times the rows are computed; above it adapter by adapter."""

Run = tuple[Served, int]
"""So many neighbouring rows of one adapter."""


@dataclass(frozen=True)
class _Place:
    """Where a layer's factors lie: its block of the shared A, and its own B."""

    group: str
    start: int
    stop: int
    b: Tensor  # [adapters, r, out]


@dataclass(frozen=True)
class _Set:
    """The stacked factors of one set of adapters, with the adapters kept alive by it."""

    members: tuple[Served, ...]
    a: dict[str, Tensor]  # group → [adapters, in, sum of its layers' ranks]
    places: dict[str, _Place]


@dataclass(frozen=True)
class _One:
    """Rows `start:stop` belong to one adapter."""

    start: int
    stop: int
    member: int

    def inner(self, x: Tensor, a: Tensor) -> Tensor:
        return x[self.start : self.stop] @ a[self.member]

    def outer(self, h: Tensor, b: Tensor, y: Tensor) -> None:
        y[self.start : self.stop].addmm_(h, b[self.member])


@dataclass(frozen=True)
class _Even:
    """Rows `start:stop` are all adapters of the set in order, each with as many."""

    start: int
    stop: int

    def inner(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.bmm(x[self.start : self.stop].view(len(a), -1, x.shape[1]), a)

    def outer(self, h: Tensor, b: Tensor, y: Tensor) -> None:
        y[self.start : self.stop].view(len(b), -1, y.shape[1]).baddbmm_(h, b)


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
        y[self.start : self.stop].add_(torch.bmm(h, b).view(-1, y.shape[1]).index_select(0, self.back))


_Part = _One | _Even | _Padded


@dataclass
class _Inner:
    """x A of one group for the input `x`, and which layers took theirs."""

    x: Tensor
    made: list[Tensor]
    taken: set[str]


class LoraLanes:
    """Forwards of the linear layers of the engine's own tree; `using` names the adapter of every row of the next one.

    A base weight that `pack` has in the processor's own layout is multiplied from there (`serve.packing`).
    """

    def __init__(self, model: nn.Module, pack_bytes: int = 0):
        self._linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._sets: OrderedDict[tuple[int, ...], _Set] = OrderedDict()
        self._current: _Set | None = None
        self._parts: list[_Part] = []
        self._rows = 0
        self._inner: dict[str, _Inner] = {}
        self._alone: set[str] = set()
        """Layers whose input turned out not to be that of their neighbours."""
        products = packed(self._linears.values(), pack_bytes)
        for name, module in self._linears.items():
            setattr(module, "forward", self._forward(name, products.get(module, module.forward)))  # noqa: B010

    def using(self, *chapters: Sequence[Run]) -> None:
        """The rows of the coming forward in order; in each chapter the rows of an adapter stand together."""
        present = {served.version: served for runs in chapters for served, _ in runs if served.lora}
        self._inner = {}
        if not present:
            self._current = None
            return
        self._current = self._set(tuple(present[version] for version in sorted(present)))
        member = {served.version: index for index, served in enumerate(self._current.members)}
        device = next(iter(self._current.a.values())).device
        self._parts, self._rows = [], 0
        for runs in chapters:
            spans = []
            for version, some in groupby(runs, key=lambda run: run[0].version):
                start, self._rows = self._rows, self._rows + sum(count for _, count in some)
                if version in member:
                    spans.append(_One(start, self._rows, member[version]))
            self._parts += _together(spans, len(member), device)

    def reach(self, head: Any) -> bool:
        """Whether an adapter of the running forward changes the output layer, whose rows are others."""
        current = self._current
        return current is not None and head is not None and any(self._linears[n] is head[1] for n in current.places)

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
        names = [name for name in self._linears if any(name in lora for lora in loras)]
        made = _Set(members, {}, {})
        for group, some in groupby(sorted(names, key=self._group), key=self._group):
            blocks, start = [], 0
            for name in some:
                parts = [(index, lora[name]) for index, lora in enumerate(loras) if name in lora]
                rank, like = max(len(part.a) for _, part in parts), parts[0][1]
                a = like.a.new_zeros(len(members), like.a.shape[1], rank)
                b = like.b.new_zeros(len(members), rank, like.b.shape[0])
                for index, part in parts:
                    a[index, :, : len(part.a)] = part.a.t()
                    b[index, : len(part.a)] = part.b.t() * part.scale
                blocks.append(a)
                made.places[name] = _Place(group, start, start + rank, b)
                start += rank
            made.a[group] = torch.cat(blocks, dim=2)
        return made

    def _group(self, name: str) -> str:
        """Layers of one parent with inputs of one width: most read the same input, and `_take` finds those that do
        not."""
        parent = name.rpartition(".")[0]
        return name if name in self._alone else f"{parent}|{self._linears[name].in_features}"

    def _forward(self, name: str, product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            y = product(x)
            current = self._current
            if current is not None and (place := current.places.get(name)) is not None:
                self._add(name, current, place, x, y)
            return y

        return forward

    def _add(self, name: str, current: _Set, place: _Place, x: Tensor, y: Tensor) -> None:
        """y += the rows' own adapters, in place."""
        flat = y.view(-1, y.shape[-1])
        if len(flat) != self._rows:
            raise ModelError(f"{name} sees {len(flat)} rows, {self._rows} were announced")
        same = y.dtype == place.b.dtype
        change = flat if same else torch.zeros_like(flat, dtype=place.b.dtype)
        for part, h in zip(self._parts, self._take(name, current, place, x), strict=True):
            part.outer(h, place.b, change)
        if not same:
            flat += change.to(flat.dtype)

    def _take(self, name: str, current: _Set, place: _Place, x: Tensor) -> list[Tensor]:
        """This layer's columns of x A for every part, computed once for all layers that read x."""
        a, known = current.a[place.group], self._inner.get(place.group)
        flat = x.reshape(-1, x.shape[-1]).to(a.dtype)
        if known is not None and known.x is not x and name not in known.taken:
            self._alone.add(name)  # a neighbour that reads something else: by itself from the next set on
            self._sets.clear()
            return [part.inner(flat, a[..., place.start : place.stop]) for part in self._parts]
        if known is None or known.x is not x:
            known = self._inner[place.group] = _Inner(x, [part.inner(flat, a) for part in self._parts], set())
        known.taken.add(name)
        return [made[..., place.start : place.stop] for made in known.made]


def _together(spans: list[_One], members: int, device: torch.device) -> Sequence[_Part]:
    """The spans of one chapter as one batched product where that does not compute much more than is needed."""
    if len(spans) < 3:
        return spans
    sizes = [span.stop - span.start for span in spans]
    start, stop, most = spans[0].start, spans[-1].stop, max(sizes)
    side_by_side = all(one.stop == other.start and one.member < other.member for one, other in pairwise(spans))
    if not side_by_side or members * most > PADDING * (stop - start):
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
