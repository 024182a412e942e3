"""Rows that say the same: exact twins and near twins, found over all rows at once.

Equal after normalising (case, width, white space) is an exact twin; near twins differ in one word, or share
most of their words and word pairs (MinHash). Grouping is by union-find, so a chain of twins is one cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from luthier.core.types import Example
from luthier.data import twins_find
from luthier.data.twins_find import Twins


def texts(example: Example) -> tuple[str, str]:
    """(prompt, answer) of a row: what is asked with its material, and what is answered."""
    prompt = [turn.text if not turn.context else f"{turn.text}\n{turn.context}" for turn in example.prompt]
    return "\n".join(prompt), example.reference


def find(parts: Sequence[Sequence[Example]], near: bool = True) -> Twins:
    """Twins over all rows of the parts, numbered one after the other."""
    pairs = ((texts(example)) for part in parts for example in part)
    return twins_find.find(pairs, near)


def linked(groups: Sequence[np.ndarray]) -> np.ndarray:
    """One number per row such that rows that are equal in any of the arrays get the same number. -1 joins nothing."""
    size = len(groups[0]) if groups else 0
    parent = np.arange(size)
    for group in groups:
        order = np.argsort(group, kind="stable")
        ordered = group[order]
        same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != -1))
        twins_find.unite(parent, order[same], order[same + 1])
    return twins_find.roots(parent)


def members(clusters: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of every cluster that has more than one, largest first."""
    order = np.argsort(clusters, kind="stable")
    bounds = np.flatnonzero(np.diff(clusters[order])) + 1
    found = [part for part in np.split(order, bounds) if len(part) > 1]
    yield from sorted(found, key=lambda part: (-len(part), int(part[0])))
