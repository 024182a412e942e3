"""Many LoRAs in one forward: their factors side by side, and a mask of who is meant.

    A_cat [Σr, in], B_cat [out, Σr], S [rows, Σr] with the scale at the row's own ranks and 0 elsewhere
    y += ((x A_catᵀ) · S[row]) B_catᵀ            two products whatever the number of adapters

On a CPU this beats gathering (Punica's BGMV) and slicing by adapter. Rows of the base have an empty mask.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.serve.adapters import Served

KEPT_SETS = 8


@dataclass(frozen=True)
class _Set:
    """The concatenated factors of one set of adapters, with the adapters kept alive by it."""

    members: tuple[Served, ...]
    a: dict[str, Tensor]
    b: dict[str, Tensor]
    masks: dict[str, Tensor]  # [members + 1, Σr]; the last row is the base's


class LoraLanes:
    """Hooks on the engine's own tree; `using` names the adapter of every row of the next forward."""

    def __init__(self, model: nn.Module):
        self._linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._hooked: set[str] = set()
        self._sets: OrderedDict[tuple[int, ...], _Set] = OrderedDict()
        self._current: _Set | None = None
        self._rows: Tensor | None = None
        self._scales: dict[int, Tensor] = {}
        """mask → its rows for the coming forward; layers of one shape share a mask."""

    def using(self, rows: Sequence[Served]) -> None:
        """One adapter (or the base) for each row of the coming forward."""
        members = list({id(served): served for served in rows if served.lora}.values())
        if not members:
            self._current = None
            return
        members.sort(key=lambda served: served.version)
        self._current = self._set(tuple(members))
        place = {id(served): index for index, served in enumerate(self._current.members)}
        device = self._linears[next(iter(self._current.a))].weight.device
        self._rows = torch.tensor([place.get(id(served), len(place)) for served in rows], device=device)
        self._scales = {}

    def _set(self, members: tuple[Served, ...]) -> _Set:
        key = tuple(served.version for served in members)
        known = key if key in self._sets else self._wider(key)
        if known:
            self._sets.move_to_end(known)
            return self._sets[known]
        names = dict.fromkeys(name for served in members for name in served.lora or ())
        made = _Set(members, {}, {}, {})
        for name in names:
            held = [(index, served.lora or {}) for index, served in enumerate(members)]
            parts = [(index, lora[name]) for index, lora in held if name in lora]
            made.a[name] = torch.cat([part.a for _, part in parts]).t().contiguous()
            made.b[name] = torch.cat([part.b for _, part in parts], dim=1).t().contiguous()
            mask = torch.zeros(len(members) + 1, made.a[name].shape[1])
            start = 0
            for index, part in parts:
                mask[index, start : start + len(part.a)] = part.scale
                start += len(part.a)
            mask = mask.to(made.a[name])
            made.masks[name] = next((other for other in made.masks.values() if _same(other, mask)), mask)
            self._hook(name)
        self._sets[key] = made
        while len(self._sets) > KEPT_SETS:
            self._sets.popitem(last=False)
        return made

    def _wider(self, key: tuple[int, ...]) -> tuple[int, ...]:
        """A set that holds these adapters and few others: requests that end must not cause a new one each."""
        wide = [known for known in self._sets if len(known) <= 2 * len(key) + 2 and set(key) <= set(known)]
        return min(wide, key=len, default=())

    def _hook(self, name: str) -> None:
        if name in self._hooked:
            return
        self._hooked.add(name)

        def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            current = self._current
            if current is None or name not in current.a or self._rows is None:
                return output
            a, b, mask = current.a[name], current.b[name], current.masks[name]
            flat = inputs[0].reshape(-1, a.shape[0])
            if len(flat) != len(self._rows):
                raise ModelError(f"{name} sees {len(flat)} rows, {len(self._rows)} were announced")
            scales = self._scales.get(id(mask))
            if scales is None:
                scales = self._scales[id(mask)] = mask[self._rows]
            if a.dtype == output.dtype:
                output.view(-1, b.shape[1]).addmm_((flat @ a).mul_(scales), b)
                return output
            change = ((flat.to(a.dtype) @ a) * scales) @ b
            return output + change.view(output.shape).to(output.dtype)

        self._linears[name].register_forward_hook(add)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
