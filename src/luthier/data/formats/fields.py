"""The strict reading of one field: text stays, what is losslessly text is repaired and told, the rest is refused.

null never becomes "None", NaN never "nan", a list never "['…']" (traps D2, D18, A4).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.types import Example, Source, Turn

Told = Callable[[str, str], None]
"""`told(field, reason)`: notes a repair of the current row."""


class Refused(Exception):
    """This row cannot be used as it is."""

    def __init__(self, field: str, reason: str, remedy: str = ""):
        super().__init__(reason)
        self.field, self.reason, self.remedy = field, reason, remedy


class Unused(Exception):
    """This row is left out on purpose (nothing is wrong with it), and that is told."""

    def __init__(self, field: str, reason: str):
        super().__init__(reason)
        self.field, self.reason = field, reason


def as_text(value: Any, field: str, told: Told) -> str | None:
    """Text of a value, or None for null. Refused for anything that has no single textual form."""
    kind = type(value)
    if kind is str:
        return value
    if value is None:
        return None
    if kind is bool:
        raise Refused(field, f"{str(value).lower()} is a truth value, not text", "write the word that is meant")
    if kind is int:
        told(field, f"the number {value} taken as text")
        return str(value)
    if kind is float:
        if not math.isfinite(value):
            raise Refused(field, "not a number (NaN or infinity)", "a missing value is an empty text or no row")
        shown = repr(value)
        if value.is_integer() or "e" in shown:
            raise Refused(field, f"the number {shown} has more than one spelling", f'write it as text: "{shown}"')
        told(field, f"the number {shown} taken as text")
        return shown
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        told(field, "a list of one text taken as that text")
        return value[0]
    names = {"dict": "an object", "list": "a list", "bytes": "bytes"}
    raise Refused(field, f"{names.get(kind.__name__, kind.__name__)}, not text", "one text a field")


@dataclass(slots=True)
class Fields:
    """One raw row with its columns resolved: `columns` maps a role (`instruction`) to the file's column."""

    value: Mapping[str, Any]
    columns: Mapping[str, str]
    source: Source
    id: str
    told: Told
    left_out: Told
    extra: dict[str, Any]
    group: str | None = None
    split: str | None = None
    task: str | None = None

    def has(self, role: str) -> bool:
        """Whether the file has a column for the role."""
        return role in self.columns

    def raw(self, role: str) -> Any:
        """The value as it stands, None where there is none."""
        column = self.columns.get(role)
        return None if column is None else self.value.get(column)

    def text(self, role: str) -> str:
        """Required text that is not blank."""
        column = self.columns.get(role, role)
        value = self.value.get(column)
        if type(value) is not str:
            if column not in self.value:
                raise Refused(column, "the field is missing", _closest(column, self.value))
            text = as_text(value, column, self.told)
            if text is None:
                raise Refused(column, "null where text is needed", "give the text, or remove the row")
            value = text
        if not value or value.isspace():
            raise Refused(column, "empty where text is needed", "give the text, or remove the row")
        return value

    def optional(self, role: str) -> str:
        """Text that may be missing, null or blank: then the empty text. Only white space counts as none."""
        column = self.columns.get(role)
        if column is None or column not in self.value:
            return ""
        value = self.value[column]
        if type(value) is not str:
            if value is None:
                self.told(column, "null taken as no text")
                return ""
            value = as_text(value, column, self.told) or ""
        return "" if value.isspace() else value

    def joined(self, role: str, between: str) -> str:
        """Required text that may be cut into a list of pieces; joining them is told."""
        column = self.columns.get(role, role)
        value = self.value.get(column)
        if isinstance(value, list) and len(value) > 1 and all(isinstance(piece, str) for piece in value):
            shown = {" ": "spaces", "\n": "line ends"}.get(between, repr(between))
            self.told(column, f"a list of texts joined by {shown}")
            text = between.join(value)
            if not text.strip():
                raise Refused(column, "empty where text is needed", "give the text, or remove the row")
            return text
        return self.text(role)

    def example(self, turns: Sequence[Turn], part: int | None = None, **more: Any) -> Example:
        """An Example with this row's id, source, group and extras. `part` numbers several examples of one row."""
        extra = {**self.extra, **more.pop("extra", {})}
        return Example(
            id=self.id if part is None else f"{self.id}.{part}",
            turns=tuple(turns),
            source=self.source,
            group=more.pop("group", self.group),
            split=self.split,
            task=self.task,
            extra=extra,
            **more,
        )


def _closest(column: str, row: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(column, [str(key) for key in row], 1)
    return f"the row has {close[0]!r}: is that meant?" if close else f"the row has: {', '.join(map(str, row))[:200]}"
