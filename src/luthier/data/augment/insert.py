"""Words of the same text are said twice, at another place."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data import words
from luthier.data.augment import AUGMENTERS
from luthier.data.augment.base import chosen


@AUGMENTERS.register("insert")
class Insert:
    """Random insertion of words that the text has."""

    class Params(Settings):
        """How much."""

        share: float = Field(0.1, gt=0, le=1)
        """Of the words."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None for a text without words."""
        pieces = words.split(text)
        able = words.places(pieces)
        if not able:
            return None
        for place in reversed(chosen(len(able), self.params.share, source)):
            word = pieces[able[int(source.integers(len(able)))]]
            gap = "" if words.is_chinese(word) else " "
            pieces[able[place]] += gap + word
        return "".join(pieces)
