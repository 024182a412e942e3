"""Rows that are too long: the prompt loses the middle of its longest texts, documents become windows.

No cut goes through a character: a character may be several tokens of one byte each, and half of one is no text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST = 8
"""Tokens that stay of every text that is cut; a row that does not fit even so is dropped."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>$")


@dataclass(frozen=True)
class Part:
    """The ids of a piece; `free` where tokens may be taken out: untrained text of the data."""

    ids: np.ndarray
    trained: bool
    free: bool


def shortened(parts: Sequence[Part], size: int, inner: np.ndarray) -> list[Part] | None:
    """The parts with at most `size` tokens, or None where that is impossible.

    The longest free texts are cut to a common length; of each, the first quarter of what stays and its end are
    kept, for a text mostly says what is asked at its beginning or its end. `inner` [vocabulary] marks tokens that
    begin inside a character.
    """
    free = [at for at, part in enumerate(parts) if part.free]
    lengths = [len(parts[at].ids) for at in free]
    kept = levelled(lengths, sum(lengths) - (sum(len(part.ids) for part in parts) - size))
    if kept is None:
        return None
    made = list(parts)
    for at, keep in zip(free, kept, strict=True):
        made[at] = Part(without_middle(parts[at].ids, keep, inner), parts[at].trained, True)
    return made


def levelled(lengths: Sequence[int], total: int) -> list[int] | None:
    """Lengths that sum to `total`: the longest are cut to one length. None where one would fall below LEAST."""
    if total < 0 or not lengths:
        return None
    order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
    kept = list(lengths)
    room = total
    for place in range(len(order) - 1, -1, -1):  # from the shortest: it stays whole while all longer ones could be so
        at = order[place]
        kept[at] = min(lengths[at], room // (place + 1))
        if kept[at] < min(LEAST, lengths[at]):
            return None
        room -= kept[at]
    return kept


def without_middle(ids: np.ndarray, keep: int, inner: np.ndarray) -> np.ndarray:
    """At most `keep` of the ids: the first quarter of them and the rest from the end."""
    if len(ids) <= keep:
        return ids
    first, second = keep // 4, len(ids) - (keep - keep // 4)
    while first > 0 and inner[ids[first]]:
        first -= 1
    while second < len(ids) and inner[ids[second]]:
        second += 1
    return np.concatenate([ids[:first], ids[second:]])


def windows(ids: np.ndarray, size: int, stride: int, inner: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first trained place) of each window: every token is trained in exactly one of them.

    A window begins with tokens of the one before, at least `stride` (at most half of the size, at least one).
    """
    overlap = max(1, min(stride, size // 2))
    start = done = 0
    while True:
        stop = min(start + size, len(ids))
        if stop < len(ids):
            stop = _back(ids, stop, done + 1, inner)
        yield start, stop, done
        if stop >= len(ids):
            return
        done = stop
        begin = _back(ids, stop - overlap, start + 1, inner)
        start = begin if stop - begin < size else stop - overlap


def _back(ids: np.ndarray, at: int, least: int, inner: np.ndarray) -> int:
    """The nearest place up to `at` where a character begins; `at` itself where there is none."""
    found = at
    while found > least and inner[ids[found]]:
        found -= 1
    return at if inner[ids[found]] else found


def inner_tokens(tokenizer: Any) -> np.ndarray:
    """[largest id + 1] whether a token begins with a continuation byte of UTF-8."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    alphabet = byte_alphabet() if _byte_level(tokenizer) else {}
    made = np.zeros(max(vocabulary.values()) + 1, bool)
    for token, at in vocabulary.items():
        raw = _BYTE.match(token)
        byte = int(raw[1], 16) if raw else alphabet.get(token[:1], 0)
        made[at] = 0x80 <= byte < 0xC0
    return made


def _byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes (GPT-2's table): character → byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
