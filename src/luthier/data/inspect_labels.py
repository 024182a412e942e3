"""Classes: how they are balanced, names that look misspelt, rows that say the same under different labels."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from luthier.core.errors import Problem
from luthier.data.columns import Examples
from luthier.data.split_report import MANY, at
from luthier.data.twins_find import Twins

LISTED = 100
IMBALANCE = 20
"""The largest class has more than this many times the rows of the smallest: told."""


def names(texts: Sequence[str | None]) -> Counter[str]:
    """Rows of every class name; several for a multi-label row. Values of a regression are no names."""
    counts: Counter[str] = Counter()
    for text, number in Counter(text for text in texts if text is not None).items():
        value = orjson.loads(text)
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                counts[name] += number
    return counts


def judge(train: Counter[str], others: dict[str, Counter[str]]) -> tuple[list[Problem], list[Problem]]:
    """(fatal problems, warnings) about the classes."""
    problems: list[Problem] = []
    warnings = [
        Problem(
            f"the class {rare!r} ({few} rows) looks like {common!r} ({many} rows)", "labels", "one of them misspelt?"
        )
        for rare, few, common, many in typos(train + sum(others.values(), Counter()))
    ]
    if len(train) == 1:
        problems.append(Problem(f"there is only one class: {next(iter(train))!r}", "data.train", "add rows of another"))
    for side, counts in others.items():
        for name in sorted(set(counts) - set(train)):
            what = f"the class {name!r} stands in {side} ({counts[name]} rows) but not in train"
            problems.append(Problem(what, f"data.{side}", "add training rows of this class, or remove these"))
    if len(train) > 1:
        (large, most), (small, least) = train.most_common()[0], train.most_common()[-1]
        if most > IMBALANCE * least:
            what = f"classes are uneven: {large!r} has {most} rows, {small!r} has {least}"
            warnings.append(Problem(what, "labels", "look at f1_macro and the confusion table, not at accuracy"))
    return problems, warnings


def typos(counts: Counter[str]) -> list[tuple[str, int, str, int]]:
    """(rare, rows, common, rows): class names that differ only in case, spaces or one or two letters."""
    found = []
    if len(counts) > 10 * MANY:
        return []
    ordered = [name for name, _ in counts.most_common()]
    for at_common, common in enumerate(ordered):
        for rare in ordered[at_common + 1 :]:
            rarer = counts[rare] * 5 <= counts[common]
            if _bare(rare) == _bare(common) or (rarer and _one_slip(rare, common)):
                found.append((rare, counts[rare], common, counts[common]))
    return found


def _bare(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum()) or name


def _one_slip(one: str, other: str) -> bool:
    if min(len(one), len(other)) < 4 or abs(len(one) - len(other)) > 2 or one[0].casefold() != other[0].casefold():
        return False
    if any(char.isdigit() for char in one + other):
        return False
    return difflib.SequenceMatcher(None, one.casefold(), other.casefold(), autojunk=False).ratio() >= 0.85


def conflicts(parts: Sequence[Examples], twins: Twins, used: np.ndarray) -> tuple[int, list[dict[str, Any]]]:
    """Rows that ask exactly the same but carry different labels: (rows concerned, first of them)."""
    labels = np.array(
        [hash_of(text) for part in parts for text in part.label_texts()] or [0] * len(used), dtype=np.int64
    )
    order = np.lexsort((labels, twins.prompts))
    order = order[used[order]]
    prompts, sorted_labels = twins.prompts[order], labels[order]
    differs = (prompts[1:] == prompts[:-1]) & (sorted_labels[1:] != sorted_labels[:-1])
    bad = np.unique(prompts[1:][differs])
    rows = order[np.isin(prompts, bad)]
    listed = []
    for row in rows[:LISTED].tolist():
        example = at(parts, row)
        listed.append({"row": example.id, "where": str(example.source), "label": str(example.label)})
    return len(rows), listed


def hash_of(text: str | None) -> int:
    """A number for a label text, -1 for none."""
    from luthier.core.seeding import derive

    return -1 if text is None else derive(0, text)
