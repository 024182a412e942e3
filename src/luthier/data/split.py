"""Dividing rows into train, validation and test before anything else touches them.

Never by file order: groups of rows are ranked by a hash of what they say and the seed. Rows of one group (a
document, conversation, person, or cluster of near twins) stand on one side. What is given is used as given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.core.errors import DataError, Problem
from luthier.core.seeding import derive
from luthier.data import split_report, split_time, twins
from luthier.data.columns import Examples
from luthier.data.load import Loaded
from luthier.data.settings import SplitSettings
from luthier.data.split_assign import assign
from luthier.data.twins_find import Twins, mixed

SIDES = ("train", "validation", "test")
UNUSED, TRAIN, VALIDATION, TEST = -1, 0, 1, 2


@dataclass
class Splits:
    """The three sides, and how they came to be. `sides` and `twins` run over `parts` put together."""

    train: Examples
    validation: Examples
    test: Examples
    report: dict[str, Any]
    parts: list[Examples] = field(default_factory=list)
    sides: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    twins: Twins | None = None

    def ids(self) -> dict[str, list[str | None]]:
        """The row ids of every side."""
        return {name: getattr(self, name).column("id") for name in SIDES}


def split(loaded: Loaded, settings: SplitSettings, task: str) -> Splits:
    """Divide the rows. DataError that says how many rows (or groups) are needed when there are too few."""
    pool = loaded.examples
    parts = [pool, *loaded.given.values()]
    found = twins.find(parts)
    sides = _tagged(pool)
    order = np.arange(len(pool))
    report: dict[str, Any] = {"seed": settings.seed, "notes": []}
    wanted = _wanted(loaded, settings, sides, report)
    free = np.flatnonzero((sides == TRAIN) | (sides == UNUSED))
    named = _named(pool, settings)
    groups = _groups(found.clusters[: len(pool)], found.wholes[: len(pool)], named)
    if settings.by_time:
        report["by"] = f"time: {settings.by_time}"
        order = split_time.oldest_first(pool, settings.by_time)
        free = _newest(order[np.isin(order, free)], loaded.max_rows)
        sides = _by_time(sides, free, wanted, len(pool))
    else:
        by_name = named is not None and bool(len(named)) and bool((named >= 0).all())
        by = "row" if named is None else "named group" if by_name else "group"
        report["by"] = by if any(wanted) else "given"
        ranks = _ranks(groups, found.wholes[: len(pool)], settings.seed)
        order = np.lexsort((np.arange(len(pool)), groups, ranks))
        free = order[np.isin(order, free)]
        limited = free if loaded.max_rows is None else free[: loaded.max_rows]
        sides[free] = UNUSED
        sides[limited] = TRAIN
        if any(wanted):
            strata = _strata(pool, settings, task, report)
            sides[limited] = assign(groups[limited], strata[limited], _counts(len(limited), wanted))
    _not_empty(sides, wanted)
    return _finish(loaded, settings, task, parts, sides, order, groups, found, report)


def _tagged(pool: Examples) -> np.ndarray:
    code = {None: UNUSED, "train": TRAIN, "validation": VALIDATION, "test": TEST}
    return np.array([code.get(tag, UNUSED) for tag in pool.column("split")], np.int8)


def _wanted(loaded: Loaded, settings: SplitSettings, sides: np.ndarray, report: dict[str, Any]) -> tuple[float, float]:
    """(validation, test) shares or numbers that are still to be carved out of the training rows."""
    wanted = []
    for side, name in ((VALIDATION, "validation"), (TEST, "test")):
        tagged = int((sides == side).sum())
        asked = float(getattr(settings, name))
        if name in loaded.given:
            if tagged:
                report["notes"].append(f"{tagged} rows marked {name} are not used: data.{name} is given")
                sides[sides == side] = UNUSED - 1
            asked = 0.0
        elif tagged:
            report["notes"].append(f"{tagged} rows are marked {name} by the data")
            asked = 0.0
        wanted.append(asked)
    return wanted[0], wanted[1]


def _named(pool: Examples, settings: SplitSettings) -> np.ndarray | None:
    """The number of the group that each row names, -1 where it names none; None when rows go one by one."""
    if settings.group == "none":
        return None
    codes: dict[str, int] = {}
    return np.array(
        [-1 if key is None else codes.setdefault(key, len(codes)) for key in pool.column("group")], np.int64
    )


def _groups(clusters: np.ndarray, wholes: np.ndarray, named: np.ndarray | None) -> np.ndarray:
    """The group number of every pool row.

    Where every row names its group (a person, a document), that is what keeps rows together, with exact twins;
    likeness would chain questions of one pattern about different people into a single group.
    """
    if named is None:
        return np.arange(len(clusters))
    alike = clusters
    if len(named) and (named >= 0).all():
        alike = np.unique(wholes, return_inverse=True)[1].astype(np.int64)
    return twins.linked([alike, named])


def _ranks(groups: np.ndarray, wholes: np.ndarray, seed: int) -> np.ndarray:
    """A random-looking rank of each row's group, from the smallest content key in it and the seed."""
    least = np.full(int(groups.max(initial=0)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, groups, wholes)
    return mixed(least ^ np.uint64(derive(seed, "split")))[groups]


def _strata(pool: Examples, settings: SplitSettings, task: str, report: dict[str, Any]) -> np.ndarray:
    """The stratum of every row; all 0 when nothing is stratified."""
    values: list[Any] = []
    if settings.stratify == "auto" and task == "classify":
        values = pool.label_texts()
        if len(set(values)) > max(2, len(values) // 2):
            values = []  # a regression: nearly every value is its own
    elif settings.stratify not in ("auto", "none"):
        values = [str(row.extra.get(settings.stratify)) for row in pool]
    report["stratified"] = bool(values)
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values] or [0] * len(pool), np.int64)


def _counts(rows: int, wanted: tuple[float, float]) -> tuple[int, int]:
    """Rows for validation and test. DataError when a share comes to no row, or nothing is left to train on."""
    counts = [int(asked) if asked >= 1 else int(rows * asked + 1e-9) for asked in wanted]
    problems = []
    for name, asked, count in zip(("validation", "test"), wanted, counts, strict=True):
        if asked > 0 and count == 0:
            need = int(np.ceil(1 / asked - 1e-9))
            problems.append(
                Problem(
                    f"{rows} rows are too few for a {name} share of {asked:g}: at least {need} rows are needed",
                    f"data.split.{name}",
                    f"add rows, raise the share, or give a file: data.{name}",
                )
            )
    if not problems and sum(counts) >= rows:
        what = f"{rows} rows are too few for {counts[0]} validation and {counts[1]} test rows"
        what += f": at least {sum(counts) + 1} rows are needed"
        problems.append(Problem(what, "data.split", "add rows, or ask for fewer"))
    if problems:
        raise DataError(problems[0].what, problems=problems)
    return counts[0], counts[1]


def _newest(rows: np.ndarray, limit: int | None) -> np.ndarray:
    return rows if limit is None else rows[-limit:]


def _by_time(sides: np.ndarray, free: np.ndarray, wanted: tuple[float, float], size: int) -> np.ndarray:
    validation, test = _counts(len(free), wanted)
    sides[(sides == TRAIN) | (sides == UNUSED)] = UNUSED
    sides[free] = TRAIN
    sides[free[len(free) - test :]] = TEST
    sides[free[len(free) - test - validation : len(free) - test]] = VALIDATION
    return sides


def _not_empty(sides: np.ndarray, wanted: tuple[float, float]) -> None:
    if not (sides == TRAIN).any():
        raise DataError("no row is left to train on", where="data.split", remedy="mark rows as train, or add some")
    for side, asked in zip((VALIDATION, TEST), wanted, strict=True):
        assert not asked or (sides == side).any(), "assign() fills what is asked or raises"


def _finish(
    loaded: Loaded, settings: SplitSettings, task: str, parts: list[Examples], sides: np.ndarray, order: np.ndarray,
    groups: np.ndarray, found: Twins, report: dict[str, Any],
) -> Splits:  # fmt: skip
    pool = loaded.examples
    chosen = {name: pool.select(order[sides[order] == side]) for side, name in enumerate(SIDES)}
    everywhere = [sides]
    for name, rows in loaded.given.items():
        chosen[name] = rows
        everywhere.append(np.full(len(rows), SIDES.index(name), np.int8))
    if task == "classify":
        split_report.refuse_unseen(chosen)
    chosen["train"] = _weighted(chosen["train"], loaded.weights, settings.seed)
    everything = np.concatenate(everywhere)
    sizes = np.unique(groups, return_counts=True)[1]
    report |= {
        "rows": {name: len(rows) for name, rows in chosen.items()},
        "unused": int((everything < TRAIN).sum()),
        "groups": len(sizes),
        "largest_group": int(sizes.max(initial=0)),
        "balance": split_report.balance(chosen),
        "overlap": split_report.overlap(parts, everything, found),
    }
    return Splits(chosen["train"], chosen["validation"], chosen["test"], report, parts, everything, found)


def _weighted(train: Examples, weights: Any, seed: int) -> Examples:
    """Repeat or thin the rows of weighted sources. A repeat's id ends in ~2, ~3, …"""
    if not weights:
        return train
    files, _ = train.places()
    factors = np.array([weights.get(file, 1.0) for file in train.files])[files]
    draw = np.random.default_rng(derive(seed, "weights")).random(len(train))
    copies = np.floor(factors).astype(np.int64) + (draw < factors % 1)
    positions = np.repeat(np.arange(len(train)), copies)
    number = np.arange(len(positions)) - np.repeat(np.cumsum(copies) - copies, copies)
    rows = train.select(positions)
    rows.suffixes |= {int(at): f"~{number[at] + 1}" for at in np.flatnonzero(number)}
    return rows
