"""Byte-level BPE from a memo: a text is cut where the tokenizer must cut it, and each part is tokenised once.

The tokenizers of GPT-2, Llama 3, Qwen and their kin split a text with a regular expression before they merge
anything, and all of these begin a new part at a lone space between two visible characters. So the ids of
"the cat sat" are the ids of "the", " cat" and " sat", and words come again and again: a dictionary answers
for most of them, several times as fast as the tokenizer. Other tokenizers (sentencepiece, word pieces, unknown
expressions, added tokens with white space) are not touched, and the first texts are done both ways and compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = CL100K.replace("{1,3}", "")
EXPRESSIONS = frozenset({GPT2, CL100K, QWEN})
"""Of GPT-2, of Llama 3 and GPT-4, of Qwen 2 and 3: none of them matches a visible character and a space after it."""
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
NOT_LONE = re.compile(r" \s|\s | $")
MOST_WORDS = 1 << 20
"""Words that are remembered; then the memo starts again."""
LONG = 48
"""Characters above which a part (a web address, a line of Chinese) is not remembered."""
COMPARED = 64
"""Texts of the first block that are also tokenised whole."""

Encode = Callable[[list[str]], list[list[int]]]


def fits(backend: Any) -> bool:
    """Whether this tokenizer (of the `tokenizers` library) cuts at every lone space between visible characters."""
    model, tokens = backend.model, backend.get_added_tokens_decoder().values()
    plain = type(model).__name__ == "BPE" and not model.dropout and not model.fuse_unk
    plain = plain and not model.continuing_subword_prefix and not model.end_of_word_suffix
    plain = plain and _parts_of(backend.normalizer).get("type", "NFC") == "NFC"
    loose = any(token.lstrip or token.rstrip or token.single_word for token in tokens)
    spaced = any(character.isspace() for token in tokens for character in token.content)
    return plain and not loose and not spaced and _splits(_parts_of(backend.pre_tokenizer))


def _parts_of(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = {} if part is None else json.loads(part.__getstate__())
    return found


def _splits(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    if kind == "ByteLevel":
        return bool(part["use_regex"]) and not part["add_prefix_space"]
    if kind != "Sequence" or len(part["pretokenizers"]) != 2:
        return False
    split, last = part["pretokenizers"]
    known = split.get("type") == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    known = known and split["pattern"].get("Regex") in EXPRESSIONS
    return known and last.get("type") == "ByteLevel" and not last["use_regex"] and not last["add_prefix_space"]


class KnownWords:
    """Texts → ids; every text stands behind `anchor`, whose ids are left out again."""

    def __init__(self, encode: Encode, anchor: str, anchor_ids: Sequence[int]):
        self._encode, self._anchor, self._head = encode, anchor, list(anchor_ids)
        self._forget()
        self._compared = False
        self.agrees = True

    def _forget(self) -> None:
        self._slots: dict[str, int] = {}
        self._pool = np.empty(1 << 16, np.int64)
        self._edges = np.empty((1 << 14, 2), np.int64)
        self._used = 0

    def ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """(ids of all texts, [texts, 2] start and size, places of texts whose ids do not begin with the anchor's).

        The ids of the texts in the third list are worthless.
        """
        if len(self._slots) > MOST_WORDS:
            self._forget()
        words, counts = self._parts(texts)
        once = self._learn(words)
        known, edges = self._slots, self._edges
        codes = np.fromiter(map(known.__getitem__, words), np.int64, len(words))
        starts, sizes = edges[codes, 0], edges[codes, 1]
        bounds = np.concatenate([[0], np.cumsum(sizes.clip(0))])
        firsts = np.cumsum([0, *counts])
        bad = np.flatnonzero(sizes[firsts[:-1]] < 0).tolist()
        flat = self._pool[np.repeat(starts - bounds[:-1], sizes.clip(0)) + np.arange(bounds[-1])]
        found = np.stack([bounds[firsts[:-1]], np.diff(bounds[firsts])], axis=1)
        for word in once:
            del known[word]
        if not self._compared:
            self._compare(texts, flat, found, bad)
        return flat, found, bad

    def _parts(self, texts: list[str]) -> tuple[list[str], list[int]]:
        """The parts of all texts, the first of each behind the anchor, the others without the space before them."""
        words: list[str] = []
        counts: list[int] = []
        for text in texts:
            text = self._anchor + text
            parts = BETWEEN_WORDS.split(text) if NOT_LONE.search(text) else text.split(" ")
            if len(text) > LONG * len(parts):
                parts = [text]
            words += parts
            counts.append(len(parts))
        return words, counts

    def _learn(self, words: list[str]) -> list[str]:
        """Tokenise what is not known yet; gives back the parts that are to be forgotten after this block."""
        known = self._slots
        fresh = dict.fromkeys(word for word in words if word not in known)
        if not fresh:
            return []
        once = [word for word in fresh if len(word) > LONG]
        listed = [*(word for word in fresh if len(word) <= LONG), *once]
        made = self._encode([word if word.startswith(self._anchor) else " " + word for word in listed])
        sizes = np.fromiter(map(len, made), np.int64, len(made))
        total, before = int(sizes.sum()), len(known)
        self._grow(total, before + len(listed))
        flat = np.fromiter(chain.from_iterable(made), np.int64, total)
        self._pool[self._used : self._used + total] = flat
        starts = self._used + np.cumsum(sizes) - sizes
        self._used += int(sizes[: len(listed) - len(once)].sum())  # the next block writes over the others
        head = len(self._head)
        for at, word in enumerate(listed):
            if word.startswith(self._anchor):
                good = made[at][:head] == self._head
                starts[at], sizes[at] = starts[at] + head, sizes[at] - head if good else -1
            known[word] = before + at
        self._edges[before : before + len(listed)] = np.stack([starts, sizes], axis=1)
        return once

    def _grow(self, tokens: int, words: int) -> None:
        while self._used + tokens > len(self._pool):
            self._pool = np.concatenate([self._pool, np.empty_like(self._pool)])
        while words > len(self._edges):
            self._edges = np.concatenate([self._edges, np.empty_like(self._edges)])

    def _compare(self, texts: list[str], flat: np.ndarray, edges: np.ndarray, bad: list[int]) -> None:
        places = [at for at in range(min(len(texts), COMPARED)) if at not in set(bad)]
        whole = self._encode([self._anchor + texts[at] for at in places])
        for at, ids in zip(places, whole, strict=True):
            start, size = edges[at].tolist()
            self.agrees &= ids == [*self._head, *flat[start : start + size].tolist()]
        self._compared = True
