"""Spaces appear inside of words, or are doubled between them."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data import words
from luthier.data.augment import AUGMENTERS
from luthier.data.augment.base import chosen


@AUGMENTERS.register("space")
class Space:
    """Random spaces."""

    class Params(Settings):
        """How much."""

        share: float = Field(0.1, gt=0, le=1)
        """Of the words."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """Always a different text, or None."""
        pieces = words.split(text)
        able = words.places(pieces)
        for place in chosen(len(able), self.params.share, source):
            word = pieces[able[place]]
            cut = int(source.integers(1, len(word))) if len(word) > 1 else 1
            pieces[able[place]] = f"{word[:cut]} {word[cut:]}"
        return "".join(pieces) if able else None
