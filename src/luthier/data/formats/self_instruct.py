"""instruction with instances[input, output]: the self-instruct layout, one Example an instance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields, Refused
from luthier.data.formats.flat import Flat


@FORMATS.register("self_instruct")
class SelfInstruct(Flat):
    """A task with its instances; the instances of a task stay in one split."""

    covers: ClassVar[frozenset[str]] = frozenset({"plain_text"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {"instruction": (), "instances": ()}
    required: ClassVar[tuple[str, ...]] = ("instruction", "instances")

    def fits(self, keys: frozenset[str], row: Mapping[str, Any]) -> bool:
        """`instances` must be a list."""
        return super().fits(keys, row) and isinstance(row.get("instances"), list)

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example an instance."""
        instruction, instances = fields.text("instruction"), fields.raw("instances")
        if not isinstance(instances, list) or not instances:
            raise Refused("instances", "no list of instances", "at least one {input, output}")
        names = {"input": "input", "output": "output"}
        for index, instance in enumerate(instances):
            if not isinstance(instance, Mapping):
                raise Refused(f"instances.{index}", "not an object", "{input, output}")
            part = replace(fields, value=instance, columns=names)
            ask = Turn("user", instruction, context=part.optional("input"))
            answer = Turn("assistant", part.text("output"))
            yield fields.example([ask, answer], part=index, group=fields.group or fields.id)
