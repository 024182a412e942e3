"""text, label: classification rows (also sentence/category, pairs of texts, and AG News' class, title, description)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields, Refused, as_text
from luthier.data.formats.flat import Flat


@FORMATS.register("text_label")
class TextLabel(Flat):
    """A text and its class, value, or list of classes. Labels keep their type until all of them are known."""

    covers: ClassVar[frozenset[str]] = frozenset({"plain_text"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("sentence", "content", "review", "utterance", "tweet", "description", "sentence1", "premise", "文本"),
        "label": ("labels", "category", "class", "sentiment", "intent", "topic", "score", "标签"),
        "pair": ("sentence2", "hypothesis", "text2", "text_pair"),
        "title": ("headline",),
    }
    required: ClassVar[tuple[str, ...]] = ("text", "label")

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example: for classification the label beside the text, for instructions the label as the answer."""
        text = _titled(fields) if fields.has("title") else fields.text("text")
        second = fields.optional("pair") if fields.has("pair") else ""
        if task == "language_model":
            yield fields.example([Turn("text", text)])
            return
        label = _label(fields)
        turns = [Turn("user", text, context=second)]
        if task == "instruct":
            turns.append(Turn("assistant", as_text(label, fields.columns["label"], fields.told) or ""))
        yield fields.example(turns, label=label)


def _titled(fields: Fields) -> str:
    """AG News: title and description are one text, and one of them may be empty."""
    title = fields.optional("title")
    if fields.columns["text"].lower() != "description" or not title:
        return fields.text("text")
    return f"{title} {fields.optional('text')}".rstrip()


def _label(fields: Fields) -> Any:
    column = fields.columns["label"]
    value = fields.raw("label")
    if column not in fields.value:
        raise Refused(column, "the field is missing", "every row needs a label")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Refused(column, "no label", "give the label, or remove the row")
    if isinstance(value, list | tuple):
        if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in value):
            raise Refused(column, "a list that is not all labels", "a list of class names")
        return tuple(value)
    number = isinstance(value, int | float)
    if not (isinstance(value, str) or number) or (number and not abs(value) < 2**63):
        raise Refused(column, f"{str(value)[:40]!r} is no label", "a class name or a number")
    return value
