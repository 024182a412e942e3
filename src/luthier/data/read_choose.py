"""Which format a source has: recognised from its columns, and told apart by what the columns leave unsaid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError
from luthier.data.formats import FORMATS
from luthier.data.read import CLASS_FILES, Located
from luthier.data.settings import DataSettings

_INTEGER = re.compile(r"[0-9]{1,6}$")


@dataclass
class Chosen:
    """A format with its columns. `names` renames the numbered columns of a table without a header."""

    format: Any
    columns: dict[str, str]
    names: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def renamed(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row under the names that the format knows."""
        if not self.names:
            return value
        row = {self.names.get(key, key): cell for key, cell in value.items()}
        if self.classes:
            code = str(row["class"])
            if _INTEGER.match(code) and 1 <= int(code) <= len(self.classes):
                row["class"] = self.classes[int(code) - 1]
        return row


@cache
def known_names() -> frozenset[str]:
    """Every column name that some format knows, in lower case: what makes a first row a header."""
    names = {"id", "split", "group"}
    for format_name in FORMATS.names():
        for role, aliases in FORMATS.get(format_name).aliases.items():
            names |= {role, *aliases}
    return frozenset(names)


def choose(sample: Sequence[Mapping[str, Any]], source: Located, settings: DataSettings, task: str) -> Chosen:
    """The format that `data.format` names, or the one that fits. DataError naming all that fit, or what is missing."""
    names, classes, notes = {}, [], []
    if sample and set(sample[0]) == {str(index) for index in range(len(sample[0]))} and not settings.columns:
        names = _headerless(sample, source, task)
        notes.append(f"{source.path}: columns taken as {', '.join(names.values())}")
        if "class" in names.values():
            classes = _classes(Path(source.path))
            notes += [f"{source.path}: classes named by their file: {', '.join(classes)}"] if classes else []
    probe = Chosen(None, {}, names)
    rows = [probe.renamed(row) for row in sample]
    keys = frozenset(str(key) for row in rows for key in row)
    wanted = _wanted(keys, settings, source)
    asked = source.format or settings.format
    if asked == "auto":
        member = _recognise(keys, rows, wanted, source, task)
    else:
        member = FORMATS.parse(asked)
    columns = _columns(member, keys, wanted, source)
    _suits(member, task, source)
    return Chosen(member, columns, names, classes, notes)


def _wanted(keys: frozenset[str], settings: DataSettings, source: Located) -> dict[str, str]:
    """`data.columns` checked against the file."""
    for role, column in settings.columns.items():
        if column not in keys:
            close = difflib.get_close_matches(column, sorted(keys), 1)
            raise DataError(
                f"{source.path} has no column {column!r}",
                where=f"data.columns.{role}",
                remedy=f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(sorted(keys))}",
            )
    return dict(settings.columns)


def _seen(keys: frozenset[str], wanted: Mapping[str, str]) -> frozenset[str]:
    """The columns as formats shall see them: renamed ones under the wanted name."""
    return (keys - set(wanted.values())) | set(wanted)


def _columns(member: Any, keys: frozenset[str], wanted: Mapping[str, str], source: Located) -> dict[str, str]:
    try:
        found = member.resolve(_seen(keys, wanted))
    except DataError as error:
        raise DataError(error.what, where=source.path, remedy=error.remedy) from None
    return {role: wanted.get(column, column) for role, column in found.items()}


def _recognise(
    keys: frozenset[str], rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, str], source: Located, task: str
) -> Any:
    seen = _seen(keys, wanted)
    first = {role: rows[0].get(column) for role, column in wanted.items()} | dict(rows[0])
    members = [FORMATS.parse(name) for name in FORMATS.names()]
    fitting = [member for member in members if member.fits(seen, first)]
    if not fitting:
        known = sorted(known_names())
        guesses = {key: close[0] for key in sorted(seen) if (close := difflib.get_close_matches(key.lower(), known, 1))}
        hint = "; ".join(f"{key!r}: did you mean {close!r}?" for key, close in guesses.items() if key.lower() != close)
        raise DataError(
            f"no format fits the columns {', '.join(sorted(keys)) or '(none)'}",
            where=source.path,
            remedy=hint or "name the columns, for example data.columns: {instruction: …, output: …}",
        )
    left = [member for member in fitting if not any(_covers(other, member, seen) for other in fitting)]
    preferred = {"classify": "text_label", "language_model": "plain_text"}.get(task)
    if len(left) > 1 and any(member.name == preferred for member in left):
        left = [member for member in left if member.name == preferred]
    if len(left) > 1:
        both = " and ".join(member.name for member in left)
        raise DataError(
            f"the columns {', '.join(sorted(keys))} fit {both}",
            where=source.path,
            remedy=f"say which: data.format: {left[0].name}",
        )
    return left[0]


def _covers(one: Any, other: Any, seen: frozenset[str]) -> bool:
    """Whether `one` explains everything that `other` does and more."""
    if one is other:
        return False
    if other.name in one.covers:
        return True
    mine = set(one.resolve(seen, strict=False).values())
    theirs = {column for role, column in other.resolve(seen, strict=False).items() if role in other.required}
    return theirs < mine and one.name not in other.covers


def _suits(member: Any, task: str, source: Located) -> None:
    if task == "classify" and member.name != "text_label":
        raise DataError(
            f"{source.path} is in the format {member.name}, which has no labels",
            where="data.train",
            remedy="classify needs a text and a label column: data.columns: {text: …, label: …}",
        )


def _headerless(sample: Sequence[Mapping[str, Any]], source: Located, task: str) -> dict[str, str]:
    """Meaning for the columns of a table that names none."""
    width = len(sample[0])
    cells = [[str(row[str(index)]) for row in sample] for index in range(width)]
    integers = [all(_INTEGER.match(cell) for cell in column) for column in cells]
    if width == 3 and integers[0] and not integers[1] and not integers[2]:
        return {"0": "class", "1": "title", "2": "description"}
    if width == 2:
        if task != "classify":
            return {"0": "question", "1": "answer"}
        few = [len(set(column)) for column in cells]
        label = 0 if (few[0], not integers[0]) < (few[1], not integers[1]) else 1
        return {str(label): "label", str(1 - label): "text"}
    if width == 1:
        return {"0": "text"}
    raise DataError(
        f"{width} columns without a header",
        where=f"{source.path}:1",
        remedy="write a first row with names (text,label or instruction,input,output)",
    )


def _classes(path: Path) -> list[str]:
    for name in CLASS_FILES:
        file = path.with_name(name)
        if file.is_file() and file.stat().st_size < 1 << 20:
            return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    return []
