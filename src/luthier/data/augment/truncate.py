"""Long inputs lose words at their end; the beginning, which mostly says what is asked, stays."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data import words
from luthier.data.augment import AUGMENTERS


@AUGMENTERS.register("truncate")
class Truncate:
    """Random truncation of long texts."""

    class Params(Settings):
        """From where."""

        keep: float = Field(0.7, gt=0, lt=1)
        """At least this share of the words stays."""
        longer_than: int = Field(30, gt=0)
        """Only texts with more words are cut: in short ones every word may decide the label."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None for short texts."""
        pieces = words.split(text)
        able = words.places(pieces)
        if len(able) <= self.params.longer_than:
            return None
        last = able[int(source.integers(int(len(able) * self.params.keep), len(able) - 1))]
        return "".join(pieces[: last + 1])
