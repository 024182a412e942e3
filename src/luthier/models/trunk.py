"""`train.trunk_cache`: where adapters sit only above layer m, what enters layer m never changes: keep it.

    first time a row is seen   embeddings → layers 0 … m-1 → [kept on disk] → layers m … → loss
    every later time                                          [from disk]   → layers m … → loss

The states are memory-mapped, [tokens of all training rows, hidden] in the base's dtype, found by the row's tokens.
The same batch gives the same bits; in a batch of another composition the products may round otherwise (1e-7).
Needs the flat layout, no virtual tokens, and no dropout below m; all of it is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.core.events import Emit, silent
from luthier.core.resources import require_space
from luthier.core.seeding import seed_everything
from luthier.core.types import Row
from luthier.engine.batch import Batch, from_rows


class TrunkCache:
    """States that enter layer `first`, for up to `tokens` tokens."""

    def __init__(self, layers: Sequence[Any], first: int, file: Path, tokens: int, hidden: int, dtype: torch.dtype):
        self.layers, self.first = list(layers), first
        self.places: dict[bytes, tuple[int, int]] = {}
        self.used = 0
        self.reused = 0
        """Tokens whose trunk was not computed again."""
        flat = torch.from_file(str(file), shared=True, size=tokens * hidden, dtype=dtype)
        self.states = flat.view(tokens, hidden)
        self._tuples = False

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """Inside, the backbone computes this flat batch from layer `first` on, or notes what enters it."""
        keys = _keys(batch)
        known = all(key in self.places for key in keys)
        with ExitStack() as stack:
            if known:
                self._skip(stack, self._read(keys).to(batch.input_ids.device))
            else:
                self._note(stack, keys, batch.lengths)
            yield

    def _read(self, keys: Sequence[bytes]) -> Tensor:
        parts = [self.states[start : start + size] for start, size in (self.places[key] for key in keys)]
        made = torch.cat(parts)[None]
        self.reused += made.shape[1]
        return made

    def _skip(self, stack: ExitStack, states: Tensor) -> None:
        def give(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._pass(states)

        # what enters layer `first` is the output of the layer before it, not what a hook puts in its place: then a
        # layer that is recomputed in the backward has the right inputs however the recomputing treats hooks
        for index, layer in enumerate(self.layers[: self.first]):
            layer.__dict__["forward"] = give if index == self.first - 1 else self._pass
            stack.callback(layer.__dict__.pop, "forward")

    def _pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self._tuples else hidden_states

    def _note(self, stack: ExitStack, keys: Sequence[bytes], lengths: Sequence[int]) -> None:
        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering = (args[0] if args else kwargs["hidden_states"]).detach()[0]
            for key, part in zip(keys, entering.split(list(lengths)), strict=True):
                if key not in self.places and self.used + len(part) <= len(self.states):
                    self.states[self.used : self.used + len(part)] = part.to(self.states.device)
                    self.places[key] = (self.used, len(part))
                    self.used += len(part)

        def shape(module: Any, args: tuple[Any, ...], made: Any) -> None:
            self._tuples = isinstance(made, tuple)

        stack.callback(self.layers[self.first].register_forward_pre_hook(keep, with_kwargs=True).remove)
        stack.callback(self.layers[self.first - 1].register_forward_hook(shape).remove)


def _keys(batch: Batch) -> list[bytes]:
    return [part.cpu().numpy().tobytes() for part in batch.input_ids.split(batch.lengths)]


def needed_bytes(adapted: Any, rows: Sequence[Row]) -> int:
    """Disk of the states of all rows."""
    weight = next(adapted.base.model.parameters())
    return _tokens(rows) * int(adapted.base.anatomy.hidden_size) * weight.element_size()


def _tokens(rows: Sequence[Row]) -> int:
    return sum(len(rows[index].input_ids) for index in range(len(rows)))


def install(adapted: Any, rows: Sequence[Row], file: Path, emit: Emit = silent) -> bool:
    """Use a trunk cache where it applies; where not, say why and leave everything as it is."""
    try:
        first = frozen_layers(adapted, [rows[index] for index in range(min(3, len(rows)))])
    except ModelError as error:
        emit("warning", what=f"no trunk cache: {error}", where="train.trunk_cache", remedy="nothing is lost but speed")
        return False
    need = needed_bytes(adapted, rows)
    require_space(file.parent, need)
    base = adapted.base
    layers = [layer for _, layer in base.anatomy.layers]
    dtype = next(base.model.parameters()).dtype
    base.trunk = TrunkCache(layers, first, file, _tokens(rows), base.anatomy.hidden_size, dtype)
    emit("trunk_cache", layers=first, of=len(layers), disk_mb=round(need / 1e6, 1))
    return True


def remove(adapted: Any, file: Path) -> None:
    """Forget the states."""
    adapted.base.trunk = None
    file.unlink(missing_ok=True)


def frozen_layers(adapted: Any, rows: Sequence[Row]) -> int:
    """How many layers below the lowest trained weight; ModelError says why there is nothing to keep."""
    if adapted.layout != "flat":
        raise ModelError("the layout is padded")
    batch = from_rows(list(rows))
    if adapted.virtual(batch) is not None:
        raise ModelError("virtual tokens act on every layer")
    one, other = (_entering(adapted, batch, seed) for seed in (0, 1))
    free = [not states.requires_grad for states in one]
    first = free.index(False) - 1 if False in free else len(free) - 1
    if first < 1:
        raise ModelError("the lowest layer is trained")
    if not torch.equal(one[first], other[first]):
        raise ModelError("dropout below the lowest trained layer")
    return first


def _entering(adapted: Any, batch: Batch, seed: int) -> list[Tensor]:
    """What enters each layer in a training pass."""
    found: list[Tensor] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for _, layer in adapted.base.anatomy.layers]
    seed_everything(seed)
    adapted.train()
    try:
        adapted.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
        adapted.eval()
    return found
