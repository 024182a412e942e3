"""What is told of a split: the classes on each side, and rows that stand on two sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from luthier.core.errors import DataError, Problem
from luthier.data.columns import Examples
from luthier.data.twins_find import Twins

LISTED = 200
MANY = 200
"""More different labels than this are no classes and are not listed."""
_NAMES = ("train", "validation", "test")


def balance(sides: Mapping[str, Examples]) -> dict[str, dict[str, int]]:
    """side → class → rows; empty without labels."""
    found = {}
    for name, rows in sides.items():
        counts = Counter(text for text in rows.label_texts() if text is not None)
        if not counts or len(counts) > MANY:
            continue
        found[name] = {_shown(text): count for text, count in counts.most_common()}
    return found


def refuse_unseen(sides: Mapping[str, Examples]) -> None:
    """DataError for classes that stand in validation or test but not in train: nothing could learn them."""
    known = _names_of(sides["train"].label_texts())
    problems = []
    for side in _NAMES[1:]:
        texts = sides[side].label_texts()
        for name in sorted(_names_of(texts) - known):
            rows = [at for at, text in enumerate(texts) if text is not None and name in _names_of([text])]
            what = f"the class {name!r} stands in {side} ({len(rows)} rows) but not in train"
            where = str(sides[side][rows[0]].source)
            problems.append(Problem(what, where, "add training rows of this class, mend the name, or remove these"))
    if problems:
        raise DataError(problems[0].what, problems=problems)


def _names_of(texts: Sequence[str | None]) -> set[str]:
    """Class names in label texts; the values of a regression are none."""
    found: set[str] = set()
    for text in set(texts) - {None}:
        value = orjson.loads(str(text))
        found |= {name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)}
    return found


def _shown(text: str) -> str:
    value = orjson.loads(text)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def overlap(parts: Sequence[Examples], sides: np.ndarray, twins: Twins) -> dict[str, Any]:
    """Rows of validation and test with a twin in train, and rows of test with a twin in validation.

    `exact`: the same up to case, width and white space; `near`: also one changed word, the same prompt, or most
    words in common.
    """
    found = {}
    for later, earlier in ((1, 0), (2, 0), (2, 1)):
        here = np.flatnonzero(sides == later)
        there = np.flatnonzero(sides == earlier)
        exact = here[np.isin(twins.wholes[here], twins.wholes[there])]
        near = here[np.isin(twins.clusters[here], twins.clusters[there])]
        if not len(near):
            continue
        found[f"{_NAMES[later]} in {_NAMES[earlier]}"] = {
            "exact": len(exact),
            "near": len(near),
            "of": len(here),
            "rows": [_pair(parts, int(row), there, twins) for row in [*exact, *np.setdiff1d(near, exact)][:LISTED]],
        }
    return found


def _pair(parts: Sequence[Examples], row: int, there: np.ndarray, twins: Twins) -> dict[str, str]:
    same = there[twins.wholes[there] == twins.wholes[row]]
    twin = int(same[0]) if len(same) else int(there[twins.clusters[there] == twins.clusters[row]][0])
    one, other = at(parts, row), at(parts, twin)
    return {"row": one.id, "where": str(one.source), "twin": other.id, "twin_where": str(other.source)}


def at(parts: Sequence[Examples], row: int) -> Any:
    """The Example at a position that runs over all parts."""
    for part in parts:
        if row < len(part):
            return part[row]
        row -= len(part)
    raise IndexError(row)
