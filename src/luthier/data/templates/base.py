"""Pieces: what a template turns a conversation into, before the tokenizer.

A piece is a text that is trained or not, and either comes from the template (control tokens mean themselves) or
from the data (text that looks like a control token stays text). An answer is tokenised by itself, so the ids of
a prompt are the very ids that a training row with this prompt begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np

from luthier.core.types import Turn
from luthier.data import known_words

ANCHOR = "\n"
"""A character that sentencepiece keeps apart: behind it, a word gets no artificial space."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`text` of the data or (`control`) of the template; `stop` ends an answer with the stop token."""

    text: str
    trained: bool = False
    control: bool = False
    stop: bool = False


class Template(Protocol):
    """A member of the family."""

    name: str
    params: Any

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """The whole conversation; trained answers end with a `stop` piece."""

    def prompt(self, turns: Sequence[Turn]) -> list[Piece]:
        """What the model is asked with: everything up to where the next answer begins."""

    def prompt_ids(self, turns: Sequence[Turn], tokenizer: Any) -> list[int]:
        """`prompt` as ids, BOS included where the model has one."""


def begins_with_bos(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer puts one before a text, else []."""
    bos = tokenizer.bos_token_id
    ids = tokenizer("x").input_ids
    return [int(bos)] if bos is not None and ids and ids[0] == bos else []


def tokenize(tokenizer: Any, texts: Sequence[str], control: bool) -> list[list[int]]:
    """Ids of each text as a continuation of something: no BOS, no EOS, no artificial first space."""
    if not texts:
        return []
    anchor = tokenize_plain(tokenizer, [ANCHOR], control)[0]
    anchored = tokenize_plain(tokenizer, [ANCHOR + text for text in texts], control)
    size = len(anchor)
    found = [ids[size:] if ids[:size] == anchor else None for ids in anchored]
    missing = [index for index, ids in enumerate(found) if ids is None]
    for index, ids in zip(missing, tokenize_plain(tokenizer, [texts[at] for at in missing], control), strict=True):
        found[index] = ids
    return [ids or [] for ids in found]


class Tokens:
    """The same as `tokenize` for the texts of many rows, in flat arrays.

    `start` may run in another thread: a fast tokenizer works outside of Python's lock. Whether control tokens mean
    themselves is a mode of it: after `control`, and before the first `start`, call `ready`.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
        self._anchor: list[int] = tokenize_plain(tokenizer, [ANCHOR], False)[0]
        fast = self._backend is not None and known_words.fits(self._backend)
        self._words = known_words.KnownWords(self._encode, ANCHOR, self._anchor) if fast else None

    def control(self, text: str) -> list[int]:
        """Ids of a text of the template, in which control tokens mean themselves."""
        return tokenize(self.tokenizer, [text], True)[0]

    def ready(self) -> None:
        """Set the mode for texts of data, in which control tokens are only text."""
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = True

    def _encode(self, texts: list[str]) -> list[list[int]]:
        assert self._backend is not None
        return [made.ids for made in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def start(self, texts: list[str]) -> tuple[list[str], Any]:
        """Begin with the texts of a block."""
        if self._backend is None:
            return texts, None
        if self._words is not None:
            found = self._words.ids(texts)
            if self._words.agrees:
                return texts, found
            self._words = None
        return texts, self._encode([ANCHOR + text for text in texts])

    def finish(self, started: tuple[list[str], Any]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all texts, [texts, 2] start and size of each)."""
        texts, made = started
        if isinstance(made, tuple):
            return self._mended(texts, *made)
        head = len(self._anchor)
        if made is None:
            found, head = tokenize(self.tokenizer, texts, False), 0
        else:
            found = made
            bad = [at for at, ids in enumerate(found) if ids[:head] != self._anchor]
            plain = tokenize_plain(self.tokenizer, [texts[at] for at in bad], False)
            for at, ids in zip(bad, plain, strict=True):
                found[at] = self._anchor + ids
        flat, edges = _flat(found)
        return flat, edges + np.array([head, -head])

    def _mended(
        self, texts: list[str], flat: np.ndarray, edges: np.ndarray, bad: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """With the ids of texts that change the anchor's own (they begin with a line end, say)."""
        if not bad:
            return flat, edges
        more, others = _flat(tokenize_plain(self.tokenizer, [texts[at] for at in bad], False))
        edges[bad] = others + np.array([len(flat), 0])
        return np.concatenate([flat, more]), edges


def _flat(found: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.fromiter((len(ids) for ids in found), np.int64, len(found))
    flat = np.fromiter(chain.from_iterable(found), np.int64, int(sizes.sum()))
    return flat, np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)


def tokenize_plain(tokenizer: Any, texts: Sequence[str], control: bool) -> list[list[int]]:
    """Ids of each text as the tokenizer gives them, without BOS and EOS."""
    if not texts:
        return []
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}
    if not control:
        options["split_special_tokens"] = True
    return [list(ids) for ids in tokenizer(list(texts), **options)["input_ids"]]


def ids_of(pieces: Sequence[Piece], tokenizer: Any) -> list[int]:
    """Ids of prompt pieces, in order, with BOS; earlier answers end with the stop token that was trained."""
    ids = begins_with_bos(tokenizer)
    for piece in pieces:
        if piece.stop:
            stop = tokenizer.eos_token_id
            ids.append(int(tokenizer.sep_token_id if stop is None else stop))
            continue
        made = tokenize(tokenizer, [piece.text], piece.control)[0]
        ids += made[1:] if ids and made[:1] == ids[:1] and len(ids) == 1 and piece.control else made
    return ids


def joined(turn: Turn) -> str:
    """Instruction and its material as one text."""
    return f"{turn.text}\n\n{turn.context}" if turn.context.strip() else turn.text
