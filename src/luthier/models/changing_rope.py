"""Rotary positions whose frequencies hang on the longest row of a batch: `dynamic` and `longrope`.

Within the original window their frequencies are constant, so rows go together as ever. A row beyond it goes alone,
and starts from the original frequencies, since `dynamic` keeps those of the longest row it ever saw. Then a row's
states are the same in every batch, after every history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.engine.batch import Batch

if TYPE_CHECKING:
    from luthier.models.forward import Virtual

CHANGING = ("dynamic", "longrope")


def constant_within(config: Any) -> int | None:
    """Positions up to which no frequency changes; None for all other rotary kinds."""
    given = getattr(config, "rope_parameters", None) or {}
    each = [one for one in (given, *given.values()) if isinstance(one, dict) and one.get("rope_type") in CHANGING]
    whole = getattr(config, "max_position_embeddings", None)
    found = [whole if one["rope_type"] == "dynamic" else one.get("original_max_position_embeddings") for one in each]
    return min((int(size) for size in found if size), default=None)


def reset(model: nn.Module) -> None:
    """Every `dynamic` module back to the frequencies of its original window."""
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if kind is None or not hasattr(module, "original_max_seq_len"):
            continue
        kinds = {f"{layer}_": name for layer, name in kind.items()} if isinstance(kind, dict) else {"": kind}
        for prefix, name in kinds.items():
            if name == "dynamic":
                setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq"))
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def row_by_row(
    model: nn.Module, batch: Batch, virtual: Virtual | None, within: int, run: Callable[[Batch, Virtual | None], Tensor]
) -> Tensor:
    """[T, hidden] by `run`: the rows inside of the window together, every other one alone."""
    extra = 0 if virtual is None else virtual.length
    last = [int(part.max()) + 1 + extra for part in batch.position_ids.split(batch.lengths)]
    parts = [[index for index, size in enumerate(last) if size <= within]]
    parts = [part for part in (*parts, *([index] for index, size in enumerate(last) if size > within)) if part]
    if len(parts) == 1:
        reset(model)
        return run(batch, virtual)
    made, places = [], []
    for part in parts:
        reset(model)
        some, tokens = _some(batch, part)
        made.append(run(some, _of_rows(virtual, part)))
        places.append(tokens)
    return torch.cat(made)[torch.cat(places).argsort().to(made[0].device)]


def _some(batch: Batch, rows: Sequence[int]) -> tuple[Batch, Tensor]:
    """These rows as a batch, and the places of their tokens in the whole one."""
    bounds = batch.bounds.tolist()
    tokens = torch.cat([torch.arange(bounds[row], bounds[row + 1]) for row in rows])
    there = tokens.to(batch.input_ids.device)
    lengths = batch.bounds[1:] - batch.bounds[:-1]
    edges = torch.cat([lengths.new_zeros(1), lengths[list(rows)].cumsum(0)])
    made = Batch(
        batch.input_ids[there],
        batch.position_ids[there],
        batch.targets[there],
        edges,
        tuple(batch.row_ids[row] for row in rows),
        None if batch.labels is None else batch.labels[list(rows)],
        None if batch.tasks is None else batch.tasks[list(rows)],
    )
    return made, tokens


def _of_rows(virtual: Virtual | None, rows: Sequence[int]) -> Virtual | None:
    """Of virtual tokens that every row has its own of, those of these rows."""
    if virtual is None:
        return None
    chosen = list(rows)
    prefix, prompt = virtual.prefix, virtual.prompt
    if prefix is not None and prefix[0][0].dim() == 4:
        prefix = [(key[chosen], value[chosen]) for key, value in prefix]
    if prompt is not None and prompt.dim() == 3:
        prompt = prompt[chosen]
    return replace(virtual, prefix=prefix, prompt=prompt)
