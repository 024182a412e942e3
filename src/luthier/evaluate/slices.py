"""The same numbers by class, length, source and language; small slices are marked, not hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.core.types import Example, Row
from luthier.evaluate.losses import RowLosses
from luthier.metrics.resample import paired
from luthier.metrics.words import has_chinese

SMALL = 30
"""Rows below which a slice says little."""
MOST = 12
"""Slices of one kind; the rest is left out."""


def slices_of(
    base: RowLosses, tuned: RowLosses, rows: Sequence[Row], examples: Sequence[Example | None], seed: int
) -> dict[str, dict[str, Any]]:
    """kind → slice → {"rows", "base", "tuned", "difference", "small"}, losses token-weighted."""
    kinds = {
        "source": [example.source.file if example else "" for example in examples],
        "length": _quartiles(np.array([len(row.input_ids) for row in rows])),
        "language": [_language(example) for example in examples],
    }
    if any(example is not None and example.label is not None for example in examples):
        kinds["class"] = [str(example.label) if example else "" for example in examples]
    made: dict[str, dict[str, Any]] = {}
    for kind, names in kinds.items():
        different = sorted(set(names), key=lambda name: -names.count(name))[:MOST]
        if len(different) > 1:
            values = np.array(names)
            made[kind] = {name: _slice(base, tuned, values == name, seed) for name in different}
    return made


def _slice(base: RowLosses, tuned: RowLosses, inside: np.ndarray, seed: int) -> dict[str, Any]:
    weights = base.count[inside]
    total = max(1.0, float(weights.sum()))
    return {
        "rows": int(inside.sum()),
        "base": float(base.total[inside].sum() / total),
        "tuned": float(tuned.total[inside].sum() / total),
        "difference": paired(base.total[inside], tuned.total[inside], weights, 200, seed),
        "small": bool(inside.sum() < SMALL),
    }


def _quartiles(lengths: np.ndarray) -> list[str]:
    if not len(lengths):
        return []
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75]).astype(int))
    names = []
    for length in lengths:
        place = int(np.searchsorted(edges, length))
        low = int(edges[place - 1]) + 1 if place else 1
        names.append(f"{low}–{int(edges[place])} tokens" if place < len(edges) else f"over {int(edges[-1])} tokens")
    return names


def _language(example: Example | None) -> str:
    if example is None:
        return ""
    return "zh" if any(has_chinese(turn.text) for turn in example.turns) else "en and other"
