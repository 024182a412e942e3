"""question, answer: perhaps with a context that the question is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields
from luthier.data.formats.flat import Flat


@FORMATS.register("question_answer")
class QuestionAnswer(Flat):
    """A question and its answer."""

    covers: ClassVar[frozenset[str]] = frozenset({"plain_text"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "question": ("问题",),
        "answer": ("答案", "回答"),
        "context": ("passage",),
    }
    required: ClassVar[tuple[str, ...]] = ("question", "answer")

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example."""
        question = Turn("user", fields.text("question"), context=fields.optional("context"))
        yield fields.example([question, Turn("assistant", fields.text("answer"))])
