"""What the tuned model knows by heart: trained rows against held-out ones of their kind, canaries against controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from luthier.core.seeding import generator
from luthier.core.types import Row
from luthier.evaluate.losses import RowLosses, row_losses
from luthier.evaluate.overfitting import Sides, exposures, memorisation

MOST_ROWS, MOST_TOKENS, LEAST_ROWS = 64, 1 << 16, 8
"""Rows of each side that are measured, and their tokens together (long rows: fewer, but not under LEAST_ROWS)."""


def measure(
    adapted: Any,
    training: Sequence[Row],
    held_out: Sequence[Row],
    planted: Sequence[Row] = (),
    controls: Sequence[Row] = (),
    batch_tokens: int = 8192,
    seed: int = 0,
) -> dict[str, Any]:
    """{"held_out": gap between trained and held-out rows, "canaries": exposures; absent without any}.

    Of `training` and `held_out`, MOST_ROWS of each are drawn by the seed; canaries among them do not count.
    """
    canaries = {row.id for row in planted}
    parts = [_drawn(training, canaries, seed, "training"), _drawn(held_out, canaries, seed, "held out")]
    parts += [list(planted), list(controls)]
    everything = [row for part in parts for row in part]
    tuned = row_losses(adapted, everything, batch_tokens)
    with adapted.off():
        base = row_losses(adapted, everything, batch_tokens)
    edges = np.cumsum([0, *map(len, parts)]).tolist()
    sides: list[Sides] = [(base.means[start:stop], tuned.means[start:stop]) for start, stop in pairwise(edges)]
    whole = [_by_document(part, side) for part, side in zip(parts[:2], sides[:2], strict=True)]
    made = {"held_out": memorisation(whole[0], whole[1], seed)}
    made["held_out"]["rows"] = {"training": len(parts[0]), "held_out": len(parts[1])}
    if len(planted):
        made["canaries"] = {**exposures(sides[2], sides[3], seed)}
        _name(made["canaries"], planted, tuned, edges[2])
    return made


def _drawn(rows: Sequence[Row], canaries: set[str], seed: int, name: str) -> list[Row]:
    """Some rows with supervised units, by chance, until there are enough of them or of their tokens."""
    made: list[Row] = []
    tokens = 0
    for place in generator(seed, "memorisation", name).permutation(len(rows)).tolist():
        row = rows[place]
        if row.id in canaries or (row.target is None and not row.trained_tokens):
            continue
        tokens += len(row.input_ids)
        if len(made) >= LEAST_ROWS and tokens > MOST_TOKENS:
            break
        made.append(row)
        if len(made) == MOST_ROWS:
            break
    return made


def _by_document(rows: Sequence[Row], side: Sides) -> Sides:
    """Windows of one document as one row, the mean of theirs: they hang together and are no independent evidence."""
    known: dict[str, int] = {}
    groups = np.array([known.setdefault(row.id.partition("#")[0], len(known)) for row in rows], dtype=np.int64)
    counts = np.bincount(groups)
    return np.bincount(groups, side[0]) / counts, np.bincount(groups, side[1]) / counts


def _name(found: dict[str, Any], planted: Sequence[Row], tuned: RowLosses, start: int) -> None:
    """The id of each canary, and whether every one of its trained tokens is the tuned model's first choice."""
    for index, (row, item) in enumerate(zip(planted, found["each"], strict=True)):
        item["id"] = row.id.partition("#")[0]
        item["first_choice"] = bool(tuned.right[start + index] == tuned.count[start + index])
    found["first_choice"] = sum(item["first_choice"] for item in found["each"])
