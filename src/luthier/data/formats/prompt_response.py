"""prompt, response: a text and its continuation (also source/target, mr/ref, document/summary, completion)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields, Refused
from luthier.data.formats.flat import Flat


@FORMATS.register("prompt_response")
class PromptResponse(Flat):
    """A prompt and the answer to it. Several answers in a list: the first is trained, all are references."""

    covers: ClassVar[frozenset[str]] = frozenset({"plain_text"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prompt": ("query", "source", "mr", "article", "dialogue", "document"),
        "response": ("completion", "target", "ref", "summary", "highlights", "reply"),
        "system": ("system_prompt",),
    }
    required: ClassVar[tuple[str, ...]] = ("prompt", "response")

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example."""
        answer, extra = first_of(fields, "response", ("target", "ref"))
        turns = [Turn("user", fields.joined("prompt", " ")), Turn("assistant", answer)]
        if fields.has("system") and (system := fields.optional("system")):
            turns.insert(0, Turn("system", system))
        yield fields.example(turns, extra=extra)


def first_of(fields: Fields, role: str, plural: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The answer to train. In columns that are known to hold alternatives, the first of several, with all kept."""
    value = fields.raw(role)
    column = fields.columns[role]
    if column not in plural or not isinstance(value, list) or len(value) < 2:
        return fields.text(role), {}
    if not all(isinstance(item, str) and item.strip() for item in value):
        raise Refused(column, "a list that is not all text", "a list of answers holds texts")
    fields.told(column, f"the first of {len(value)} alternatives is trained, all are references")
    return value[0], {"references": list(value)}
