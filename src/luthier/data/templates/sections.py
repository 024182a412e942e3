"""Templates that are nothing but text around each turn; the members only differ in that text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.types import Turn
from luthier.data.templates.base import Piece, ids_of


class Sections:
    """`before(turn)` gives the text that leads to a turn's own words; `opening` leads to an answer."""

    opening = ""
    params: Any

    def around(self, turn: Turn) -> list[Piece]:
        """The pieces of a turn that is not an answer."""
        return [Piece(turn.text)]

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """The whole conversation."""
        made: list[Piece] = []
        for turn in turns:
            if turn.role == "assistant":
                trained = turn.train is not False
                made += [Piece(self.opening, control=True)] if self.opening else []
                made += [Piece(turn.text, trained=trained), Piece("", trained=trained, stop=True)]
            elif turn.role == "text":
                made += [Piece(turn.text, trained=turn.train is not False), Piece("", trained=True, stop=True)]
            else:
                made += self.around(turn)
        return made

    def prompt(self, turns: Sequence[Turn]) -> list[Piece]:
        """Everything up to where the answer begins; an unfinished document is only its text."""
        if turns and turns[-1].role == "text":
            return [Piece(turn.text) for turn in turns]
        made = self.pieces(turns)
        return [*made, Piece(self.opening, control=True)] if self.opening else made

    def prompt_ids(self, turns: Sequence[Turn], tokenizer: Any) -> list[int]:
        """As ids."""
        return ids_of(self.prompt(turns), tokenizer)
