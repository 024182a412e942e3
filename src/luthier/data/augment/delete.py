"""Words are left out."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data import words
from luthier.data.augment import AUGMENTERS
from luthier.data.augment.base import chosen


@AUGMENTERS.register("delete")
class Delete:
    """Random deletion; never all words."""

    class Params(Settings):
        """How much."""

        share: float = Field(0.1, gt=0, lt=1)
        """Of the words."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None for fewer than three words."""
        pieces = words.split(text)
        able = words.places(pieces)
        if len(able) < 3:
            return None
        for place in reversed(chosen(len(able), self.params.share, source)[: len(able) - 2]):
            index = able[place]
            after = index + 1
            last = after < len(pieces) and pieces[after].isspace()
            del pieces[index : after + 1 if last else after]
        return "".join(pieces)
