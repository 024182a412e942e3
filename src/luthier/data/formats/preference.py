"""chosen, rejected: preference rows; the chosen answer is trained, the rejected one kept beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields, Refused
from luthier.data.formats.flat import Flat
from luthier.data.formats.messages import conversation


@FORMATS.register("preference")
class Preference(Flat):
    """A prompt with a better and a worse answer, as texts or as messages."""

    covers: ClassVar[frozenset[str]] = frozenset({"instruction", "prompt_response", "question_answer", "plain_text"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prompt": ("instruction", "question", "query"),
        "input": ("context",),
        "chosen": ("chosen_response",),
        "rejected": ("rejected_response",),
        "system": ("system_prompt",),
    }
    required: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example with `rejected`."""
        chosen = fields.raw("chosen")
        if isinstance(chosen, list) and chosen and isinstance(chosen[0], Mapping):
            yield self._messages(fields, chosen)
            return
        if not fields.has("prompt"):
            raise Refused("prompt", "the field is missing", "a preference row needs the prompt of its answers")
        turns = [
            Turn("user", fields.text("prompt"), context=fields.optional("input")),
            Turn("assistant", fields.text("chosen")),
        ]
        if fields.has("system") and (system := fields.optional("system")):
            turns.insert(0, Turn("system", system))
        yield fields.example(turns, rejected=fields.text("rejected"))

    def _messages(self, fields: Fields, chosen: list[Any]) -> Example:
        turns = conversation(chosen, "chosen", fields.told)
        rejected = fields.raw("rejected")
        if not isinstance(rejected, list):
            raise Refused("rejected", "not messages, while chosen is", "the same form for both")
        worse = conversation(rejected, "rejected", fields.told)
        prompt = fields.raw("prompt")
        if isinstance(prompt, str) and prompt.strip() and not any(turn.role == "user" for turn in turns):
            turns.insert(0, Turn("user", prompt))
        return fields.example(turns, rejected=worse[-1].text)
