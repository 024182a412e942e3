"""messages (OpenAI) or conversations (ShareGPT): several turns, tool calls as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields
from luthier.data.formats.flat import Flat
from luthier.data.formats.messages import conversation


@FORMATS.register("chat")
class Chat(Flat):
    """A conversation. Which answers are trained is `data.loss_on`, or a message's own `weight`."""

    covers: ClassVar[frozenset[str]] = frozenset({"plain_text"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "messages": ("conversations", "conversation", "dialog", "turns"),
        "tools": ("functions",),
        "system": ("system_prompt",),
    }
    required: ClassVar[tuple[str, ...]] = ("messages",)

    def fits(self, keys: frozenset[str], row: Mapping[str, Any]) -> bool:
        """The column must hold a list of objects with roles."""
        if not super().fits(keys, row):
            return False
        value = row.get(self.resolve(keys, strict=False)["messages"])
        first = value[0] if isinstance(value, list) and value else None
        return first is None or isinstance(first, Mapping)

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example; the tools on offer are kept as text beside the turns."""
        turns = conversation(fields.raw("messages"), fields.columns["messages"], fields.told)
        if fields.has("system") and turns[0].role != "system" and (system := fields.optional("system")):
            turns.insert(0, Turn("system", system))
        tools = fields.raw("tools")
        extra: dict[str, Any] = {}
        if tools:
            extra["tools"] = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        yield fields.example(turns, extra=extra)
