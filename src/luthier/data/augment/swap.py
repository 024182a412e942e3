"""Neighbouring words change places."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data import words
from luthier.data.augment import AUGMENTERS
from luthier.data.augment.base import chosen


@AUGMENTERS.register("swap")
class Swap:
    """Random swaps of adjacent words."""

    class Params(Settings):
        """How much."""

        share: float = Field(0.2, gt=0, le=1)
        """Of the words."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None for fewer than two words."""
        pieces = words.split(text)
        able = words.places(pieces)
        if len(able) < 2:
            return None
        for place in chosen(len(able) - 1, self.params.share / 2, source):
            one, other = able[place], able[place + 1]
            pieces[one], pieces[other] = pieces[other], pieces[one]
        changed = "".join(pieces)
        return None if changed == text else changed
