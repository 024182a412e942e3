"""Typing and scanning errors: neighbouring keys, dropped, doubled and look-alike characters."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data import words
from luthier.data.augment import AUGMENTERS
from luthier.data.augment.base import chosen

_NEAR = (
    "aqsz bvgn cxdv dsfe ewrd fdgr gfht hgjy iuok jhku kjli lkop mnj nbmh oipl pol qwa retf sadw tryg uyij vcbf wqes "
    "xzcs ytuh zxa"
)
KEYS = {group[0]: group[1:] for group in _NEAR.split()}
"""Letter → its neighbours on a keyboard."""
SCANNED = {"l": "1", "o": "0", "m": "rn", "e": "c", "i": "l", "g": "q", "己": "已", "未": "末", "日": "曰", "土": "士"}


@AUGMENTERS.register("noise")
class Noise:
    """One character of a chosen word."""

    class Params(Settings):
        """How much."""

        share: float = Field(0.1, gt=0, le=1)
        """Of the words."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None where no word can be changed."""
        pieces = words.split(text)
        able = [i for i in words.places(pieces) if len(pieces[i]) > 2 or any(c in SCANNED for c in pieces[i])]
        for place in chosen(len(able), self.params.share, source):
            pieces[able[place]] = _damaged(pieces[able[place]], source)
        changed = "".join(pieces)
        return None if changed == text else changed


def _damaged(word: str, source: np.random.Generator) -> str:
    place = int(source.integers(len(word)))
    letter = word[place]
    kind = source.random()
    if kind < 0.4 and letter in SCANNED:
        return word[:place] + SCANNED[letter] + word[place + 1 :]
    if kind < 0.7 and letter.lower() in KEYS:
        keys = KEYS[letter.lower()]
        return word[:place] + keys[int(source.integers(len(keys)))] + word[place + 1 :]
    if kind < 0.85:
        return word[:place] + letter + word[place:]
    return word[:place] + word[place + 1 :]
