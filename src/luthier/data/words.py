"""Splitting text into words that may be changed and what lies between them, for Latin scripts and Chinese.

Numbers, code-like tokens and control-token look-alikes are never words: changing them would change the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"[A-Za-zÀ-ɏ]+(?:['’][A-Za-z]+)?|[\u3400-\u9fff]+|<[^<>\s]+>|[^\sA-Za-zÀ-ɏ\u3400-\u9fff]+|\s+")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ'’]+$")
_CHINESE = re.compile(r"[\u3400-\u9fff]+$")


def split(text: str) -> list[str]:
    """Pieces whose concatenation is the text; runs of Chinese are cut into words by rjieba."""
    pieces: list[str] = []
    for piece in _TOKEN.findall(text):
        if _CHINESE.match(piece) and len(piece) > 1:
            import rjieba

            pieces += rjieba.cut(piece)
        else:
            pieces.append(piece)
    return pieces


def is_word(piece: str) -> bool:
    """Whether an augmenter may change this piece."""
    return bool(_LATIN.match(piece) or _CHINESE.match(piece))


def is_chinese(piece: str) -> bool:
    """Whether the piece is Chinese."""
    return bool(_CHINESE.match(piece))


def places(pieces: Sequence[str]) -> list[int]:
    """Indices of the pieces that are words."""
    return [index for index, piece in enumerate(pieces) if is_word(piece)]
