"""The text itself: question, line break, answer; documents and classified texts as they are."""

from __future__ import annotations

from luthier.core.settings import Settings
from luthier.core.types import Turn
from luthier.data.templates import TEMPLATES
from luthier.data.templates.base import Piece, joined
from luthier.data.templates.sections import Sections


@TEMPLATES.register("plain")
class Plain(Sections):
    """No headings."""

    opening = "\n"

    class Params(Settings):
        """No settings."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def around(self, turn: Turn) -> list[Piece]:
        """The turn's words."""
        return [Piece(joined(turn))]
