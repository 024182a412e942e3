"""Packing rows into token budgets: in order for the steps, best-fit for the forwards inside a step."""

from __future__ import annotations

import bisect

import numpy as np


def best_fit(lengths: np.ndarray, order: np.ndarray, budget: int) -> list[list[int]]:
    """Bins of row indices, each at most `budget` tokens (a longer row gets a bin of its own).

    `order` breaks ties between equal lengths, so the bins hang on the shuffle. O(n log n): bins are kept sorted by
    the room that is left.
    """
    ranked = order[np.argsort(-lengths[order], kind="stable")]
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in ranked.tolist():
        need = int(lengths[index])
        place = bisect.bisect_left(rooms, (need, -1))
        if place == len(rooms):
            number = len(bins)
            bins.append([index])
            left = budget - need
        else:
            left, number = rooms.pop(place)
            bins[number].append(index)
            left -= need
        if left > 0:
            bisect.insort(rooms, (left, number))
    return bins


def fill(lengths: np.ndarray, order: np.ndarray, budget: int) -> list[list[int]]:
    """Rows in the given order, a new pack where the next row would pass the budget.

    Steps are filled like this and not best-fit: that would put rows of one length, which are often of one kind,
    into one step, and the loss would swing between kinds. The slack costs nothing, since nothing is padded.
    """
    packs: list[list[int]] = []
    room = 0
    for index in order.tolist():
        need = int(lengths[index])
        if not packs or need > room:
            packs.append([])
            room = budget
        packs[-1].append(index)
        room -= need
    return packs
