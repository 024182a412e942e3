"""Words replaced by synonyms from a WordNet-type lexicon, English or Chinese."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data import words
from luthier.data.augment import AUGMENTERS
from luthier.data.augment.base import chosen


@AUGMENTERS.register("synonyms")
class Synonyms:
    """Keeps capitals; words without a synonym stay."""

    class Params(Settings):
        """How much, and from which lexicon."""

        share: float = Field(0.3, gt=0, le=1)
        """Of the words that have a synonym."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""
        lexicon: str | None = None
        """A WordNet dict folder, an Open Multilingual WordNet .tab, or a TSV of synsets."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None where no word has a synonym."""
        from luthier.data.lexicon import synonyms

        known = synonyms(self.params.lexicon)
        pieces = words.split(text)
        able = [index for index in words.places(pieces) if pieces[index].lower() in known]
        for place in chosen(len(able), self.params.share, source):
            index = able[place]
            others = known[pieces[index].lower()]
            other = others[int(source.integers(len(others)))]
            pieces[index] = other.capitalize() if pieces[index][:1].isupper() else other
        return "".join(pieces) if able else None
