"""Pieces: what a template turns a conversation into, before the tokenizer.

A piece is a text that is trained or not, and either comes from the template (control tokens mean themselves) or
from the data (text that looks like a control token stays text). An answer is tokenised by itself, so the ids of
a prompt are the very ids that a training row with this prompt begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.core.types import Turn

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
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}
    if not control:
        options["split_special_tokens"] = True
    anchor = tokenizer([ANCHOR], **options)["input_ids"][0]
    anchored = tokenizer([ANCHOR + text for text in texts], **options)["input_ids"]
    size = len(anchor)
    found = [ids[size:] if ids[:size] == anchor else None for ids in anchored]
    missing = [index for index, ids in enumerate(found) if ids is None]
    if missing:
        plain = tokenizer([texts[index] for index in missing], **options)["input_ids"]
        for index, ids in zip(missing, plain, strict=True):
            found[index] = ids
    return [list(ids or ()) for ids in found]


def ids_of(pieces: Sequence[Piece], tokenizer: Any) -> list[int]:
    """Ids of prompt pieces, in order, with BOS."""
    ids = begins_with_bos(tokenizer)
    for piece in pieces:
        made = tokenize(tokenizer, [piece.text], piece.control)[0]
        ids += made[1:] if ids and made[:1] == ids[:1] and len(ids) == 1 and piece.control else made
    return ids


def joined(turn: Turn) -> str:
    """Instruction and its material as one text."""
    return f"{turn.text}\n\n{turn.context}" if turn.context.strip() else turn.text
