"""Where the heads of a model look on long rows, from one forward a row: see `engine.attention_shape`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from luthier.core.errors import ModelError
from luthier.core.types import Row
from luthier.engine.attention_shape import NAMES, attention_shape
from luthier.engine.batch import from_rows
from luthier.models import segments

MOST_ROWS = 8


def inspect(adapted: Any, rows: Sequence[np.ndarray], far: int) -> dict[str, Any] | None:
    """{"far": tokens, "rows", "layers": [{"layer", "entropy": [a head …], "distance": …}], "mean": {name: number}}.

    `rows` are token ids; `far` is the distance from which a key counts as far: the old window. Means over rows.
    None where the architecture does not fit the flat layout, whose queries and keys are looked at.
    """
    found: dict[int, dict[str, list[np.ndarray]]] = {}
    before = adapted.layout
    adapted.layout = "flat"
    try:
        for ids in rows[:MOST_ROWS]:
            with torch.no_grad(), segments.watching(_collect(found, len(ids), far)):
                adapted.hidden(from_rows([Row("attention", ids, ids)]))
    except ModelError:
        return None
    finally:
        adapted.layout = before
    if not found:
        return None
    layers = [
        {"layer": layer, **{name: [_plain(value) for value in _mean(parts[name])] for name in NAMES}}
        for layer, parts in sorted(found.items())
    ]
    every = {name: np.concatenate([_mean(parts[name]) for parts in found.values()]) for name in NAMES}
    means = {name: _plain(np.mean(values)) for name, values in every.items()}
    return {"far": far, "rows": min(len(rows), MOST_ROWS), "layers": layers, "mean": means}


def _collect(found: dict[int, dict[str, list[np.ndarray]]], length: int, far: int) -> segments.Watcher:
    def watch(layer: int, query: torch.Tensor, key: torch.Tensor, told: dict[str, Any]) -> None:
        # prompt embeddings are tokens of the row here; only keys beyond the queries are virtual
        shape = attention_shape(query, key, far=far, ahead=key.shape[1] - query.shape[1], **told)
        parts = found.setdefault(layer, {name: [] for name in NAMES})
        for name, values in shape.items():
            parts[name].append(values.double().cpu().numpy())

    return watch


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """[heads] over the rows that have a number."""
    found = np.stack(values)
    return np.asarray(np.nansum(found, axis=0) / np.where((~np.isnan(found)).any(0), (~np.isnan(found)).sum(0), np.nan))


def _plain(value: float) -> float | None:
    """Four digits; None where no row looks back that far."""
    return None if np.isnan(value) else round(float(value), 4)
