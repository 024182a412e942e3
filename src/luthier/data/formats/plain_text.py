"""text: documents without questions (also content, document, body, or a list of paragraphs)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields
from luthier.data.formats.flat import Flat


@FORMATS.register("plain_text")
class PlainText(Flat):
    """A document. Everything in it is trained."""

    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("content", "document", "body", "article", "story", "paragraphs", "lines", "内容"),
        "title": ("headline", "标题"),
        "author": ("作者",),
    }
    required: ClassVar[tuple[str, ...]] = ("text",)

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example; title and author are kept beside the text, not in it."""
        kept = {role: fields.optional(role) for role in ("title", "author") if fields.has(role)}
        yield fields.example([Turn("text", fields.joined("text", "\n"))], extra=kept)
