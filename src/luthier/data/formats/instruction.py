"""instruction, input, output: the alpaca layout (also task/query/prompt, context, response/answer through aliases)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields
from luthier.data.formats.flat import Flat


@FORMATS.register("instruction")
class Instruction(Flat):
    """An instruction, perhaps material for it, and the answer."""

    covers: ClassVar[frozenset[str]] = frozenset({"plain_text"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "instruction": ("指令",),
        "input": ("context", "输入"),
        "output": ("response", "answer", "completion", "输出"),
        "system": ("system_prompt",),
    }
    required: ClassVar[tuple[str, ...]] = ("instruction", "output")

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example."""
        ask = Turn("user", fields.text("instruction"), context=fields.optional("input"))
        answer = Turn("assistant", fields.text("output"))
        system = fields.optional("system") if fields.has("system") else ""
        yield fields.example([Turn("system", system), ask, answer] if system else [ask, answer])
