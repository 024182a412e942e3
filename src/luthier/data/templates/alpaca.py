"""### Instruction / ### Input / ### Response headings, with and without input."""

from __future__ import annotations

from luthier.core.settings import Settings
from luthier.core.types import Turn
from luthier.data.templates import TEMPLATES
from luthier.data.templates.base import Piece
from luthier.data.templates.sections import Sections


@TEMPLATES.register("alpaca")
class Alpaca(Sections):
    """The headings of the Alpaca data set (Taori et al. 2023), without its preamble."""

    opening = "### Response:\n"

    class Params(Settings):
        """No settings."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def around(self, turn: Turn) -> list[Piece]:
        """One rule for an absent input, everywhere: only white space counts as absent."""
        if turn.role == "system":
            return [Piece(turn.text), Piece("\n\n", control=True)]
        head = "### Input:\n" if turn.role == "tool" else "### Instruction:\n"
        made = [Piece(head, control=True), Piece(turn.text), Piece("\n\n", control=True)]
        if turn.context.strip():
            made += [Piece("### Input:\n", control=True), Piece(turn.context), Piece("\n\n", control=True)]
        return made
