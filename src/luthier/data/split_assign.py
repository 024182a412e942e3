"""Which group goes to which side: quotas per stratum, groups in rank order, none cut in two."""

from __future__ import annotations

import numpy as np

from luthier.core.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2


def assign(groups: np.ndarray, strata: np.ndarray, counts: tuple[int, int]) -> np.ndarray:
    """The side of every row. Rows stand in rank order, the rows of a group together.

    `counts` are the rows asked for validation and test; no side gets more, and a group that would not fit goes
    to train. DataError when the groups cannot be divided at all.
    """
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(groups)]]))
    kinds = _majority(strata, starts, sizes)
    left = {TEST: _quotas(strata, counts[1]), VALIDATION: _quotas(strata, counts[0])}
    stay = np.bincount(strata).tolist()
    sides = _by_quota(sizes.tolist(), kinds.tolist(), left, stay)
    for side, count in ((TEST, counts[1]), (VALIDATION, counts[0])):
        _fill(sides, sizes, kinds, side, count, stay)
        if count and not (sides == side).any():
            raise _indivisible(sizes, counts)
    if not (sides == TRAIN).any():
        raise _indivisible(sizes, counts)
    return np.repeat(sides, sizes)


def _majority(strata: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The most frequent stratum of every group (its first row's, for groups of one stratum)."""
    kinds = strata[starts].copy()
    for at in np.flatnonzero(sizes > 1).tolist():
        values, found = np.unique(strata[starts[at] : starts[at] + sizes[at]], return_counts=True)
        kinds[at] = values[int(found.argmax())]
    return kinds


def _quotas(strata: np.ndarray, count: int) -> list[int]:
    """`count` shared among the strata by size, largest remainders first; never the last row of a stratum."""
    sizes = np.bincount(strata)
    exact = sizes * (count / max(1, len(strata)))
    quotas = np.floor(exact).astype(np.int64)
    short = count - int(quotas.sum())
    for at in np.argsort(-(exact - quotas), kind="stable")[:short].tolist():
        quotas[at] += 1
    return np.minimum(quotas, np.maximum(sizes - 1, 0)).tolist()


def _by_quota(sizes: list[int], kinds: list[int], left: dict[int, list[int]], stay: list[int]) -> np.ndarray:
    sides = np.zeros(len(sizes), np.int8)
    test, validation = left[TEST], left[VALIDATION]
    for at, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        if size >= stay[kind]:
            continue
        if size <= test[kind]:
            sides[at] = TEST
            test[kind] -= size
        elif size <= validation[kind]:
            sides[at] = VALIDATION
            validation[kind] -= size
        else:
            continue
        stay[kind] -= size
    return sides


def _fill(sides: np.ndarray, sizes: np.ndarray, kinds: np.ndarray, side: int, count: int, stay: list[int]) -> None:
    """Bring a side nearer to its count with whole groups from train; at least one group, if need be the smallest."""
    missing = count - int(sizes[sides == side].sum())
    for at in np.flatnonzero(sides == TRAIN).tolist() if missing > 0 else ():
        size, kind = int(sizes[at]), int(kinds[at])
        if size <= missing and size < stay[kind]:
            sides[at] = side
            stay[kind] -= size
            missing -= size
            if not missing:
                return
    inside = np.flatnonzero(sides == TRAIN)
    if count and not (sides == side).any() and len(inside) > 1:
        smallest = int(inside[sizes[inside].argmin()])
        if sizes[smallest] * 2 < sizes[inside].sum():
            sides[smallest] = side
            stay[int(kinds[smallest])] -= int(sizes[smallest])


def _indivisible(sizes: np.ndarray, counts: tuple[int, int]) -> DataError:
    need = 1 + sum(count > 0 for count in counts)
    return DataError(
        f"the {int(sizes.sum())} rows form only {len(sizes)} independent groups (the largest has {int(sizes.max())} "
        f"rows that say nearly the same or belong together): at least {need} groups of fitting size are needed",
        where="data.split",
        remedy="add different rows, give files (data.validation, data.test), or set data.split.group: none, "
        "knowing that the scores then measure memory",
    )
