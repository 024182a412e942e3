"""What an augmenter is: a change of a text's words, with a random generator that belongs to this row."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Augmenter(Protocol):
    """`change(text, source)` gives the changed text, or None where nothing could be changed."""

    name: str
    params: Any

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """A changed text."""


def chosen(count: int, share: float, source: np.random.Generator) -> list[int]:
    """About `share` of `count` places, at least one, in ascending order."""
    if not count:
        return []
    picked = [index for index in range(count) if source.random() < share]
    return picked or [int(source.integers(count))]
