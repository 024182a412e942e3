"""The tokenizer's own chat template, rendered with marks in place of the texts, in a bounded sandbox.

The marks tell where each text stands in the rendering, so the mask comes from places, never from searching for
answers or from {% generation %} tags (stock templates have none). What stands between the marks is the template's
own text and may hold control tokens; the texts may not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from luthier.core.errors import ModelError
from luthier.core.settings import Settings
from luthier.core.types import Turn
from luthier.data.templates import TEMPLATES
from luthier.data.templates.base import Piece, ids_of, joined

_MARK = re.compile("\ue000(\\d+)\ue001")


@TEMPLATES.register("chat")
class Chat:
    """jinja: the template's source; `auto` takes the tokenizer's own when the template is chosen for it."""

    class Params(Settings):
        """Where the template comes from."""

        source: str = ""
        """Jinja source; empty: the tokenizer's own."""
        bos: str = ""
        eos: str = ""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    @classmethod
    def of(cls, tokenizer: Any) -> Chat:
        """Bound to the template of a tokenizer, so that an artefact carries it."""
        source = tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default", next(iter(source.values())))
        return cls(cls.Params(source=source, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or ""))

    def bound(self, tokenizer: Any) -> Chat:
        """Itself, or the tokenizer's template where none was given."""
        if self.params.source:
            return self
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError("this tokenizer has no chat template", where="data.template", remedy="template: alpaca")
        return Chat.of(tokenizer)

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """The whole conversation; the first thing after an answer is its stop token."""
        return self._split(turns, self._render(turns, opened=False))

    def prompt(self, turns: Sequence[Turn]) -> list[Piece]:
        """Up to where the next answer begins."""
        return self._split(turns, self._render(turns, opened=True))

    def prompt_ids(self, turns: Sequence[Turn], tokenizer: Any) -> list[int]:
        """As ids; BOS once, whether the template writes it or the tokenizer adds it."""
        return ids_of(self.bound(tokenizer).prompt(turns), tokenizer)

    def _render(self, turns: Sequence[Turn], opened: bool) -> str:
        messages = [{"role": turn.role, "content": f"\ue000{index}\ue001"} for index, turn in enumerate(turns)]
        return render(self.params.source, repr((messages, opened, self.params.bos, self.params.eos)))

    def _split(self, turns: Sequence[Turn], text: str) -> list[Piece]:
        made: list[Piece] = []
        place, after_answer = 0, False
        for found in _MARK.finditer(text):
            made += _between(text[place : found.start()], after_answer)
            turn = turns[int(found[1])]
            answer = turn.role == "assistant"
            trained = answer and turn.train is not False
            made.append(Piece(turn.text if answer else joined(turn), trained=trained))
            if answer:
                made.append(Piece("", trained=trained, stop=True))
            place, after_answer = found.end(), answer
        seen = {int(found[1]) for found in _MARK.finditer(text)}
        if len(seen) != len(turns):
            raise ModelError("the chat template leaves out a message", where="data.template", remedy="template: alpaca")
        return made + _between(text[place:], after_answer)


def _between(text: str, after_answer: bool) -> list[Piece]:
    """Template text; directly after an answer its own end token is dropped, for the stop piece stands there."""
    if after_answer:
        text = re.sub(r"^\s*(<\|[^|<>]+\|>|</s>|<[a-z_]+>)", "", text, count=1)
    return [Piece(text, control=True)] if text else []


@lru_cache(maxsize=4096)
def render(source: str, arguments: str) -> str:
    """Render in jinja's immutable sandbox. ModelError for a template that fails, grows or takes too long."""
    import ast

    from luthier.data.templates.sandbox import render_bounded

    messages, opened, bos, eos = ast.literal_eval(arguments)
    return render_bounded(source, messages, opened, bos, eos)
