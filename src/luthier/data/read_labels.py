"""Labels settled once all are known: `1`, `1.0` and `01` never become three classes, and each repair is told.

Class names are text. Whole numbers that stand for classes become text; numbers with fractions are values of a
regression. What could mean two things is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from luthier.core.errors import DataError, Problem
from luthier.data.arrow import texts
from luthier.data.columns import Examples

if TYPE_CHECKING:
    from luthier.data.load import LoadReport

_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?([eE][+-]?\d{1,2})?$", re.ASCII)


def settle(parts: Sequence[Examples], report: LoadReport) -> None:
    """Rewrite the label columns of all parts in one way. DataError when labels cannot be told apart safely."""
    counts: Counter[str] = Counter()
    for part in parts:
        for chunk in part.chunks:
            if chunk.labels is not None:
                for entry in chunk.labels.value_counts().to_pylist():
                    if entry["values"] is not None:
                        counts[entry["values"]] += entry["counts"]
    if not counts:
        return
    mapping = _values(counts, parts) or _mapping(counts, parts)
    changed = {old: new for old, new in mapping.items() if old != new[0]}
    if not changed:
        return
    for part in parts:
        for chunk in part.chunks:
            if chunk.labels is None:
                continue
            old = chunk.labels.to_pylist()
            chunk.labels = texts([None if text is None else mapping[text][0] for text in old])
            for row, text in enumerate(old):
                if text in changed and mapping[text][1]:
                    where = str(chunk.place(row, part.files))
                    report.tell("repaired", where, chunk.ids[row].as_py(), "label", mapping[text][1])


def _values(counts: Counter[str], parts: Sequence[Examples]) -> dict[str, tuple[str, str]]:
    """Cells of tables have no type: where all are numbers and some have fractions, they are values, not classes."""
    if not all(file.split(".")[-1].lower() in ("csv", "tsv", "gz", "zst") for part in parts for file in part.files):
        return {}
    texts = {text: orjson.loads(text) for text in counts}
    if not all(isinstance(value, str) and _NUMBER.match(value.strip()) for value in texts.values()):
        return {}
    numbers = {text: float(value) for text, value in texts.items()}
    if all(number.is_integer() for number in numbers.values()):
        return {}
    return {text: (_json(number), "") for text, number in numbers.items()}


def _mapping(counts: Counter[str], parts: Sequence[Examples]) -> dict[str, tuple[str, str]]:
    """label as read (JSON) → (label as settled (JSON), reason)."""
    values = {text: orjson.loads(text) for text in counts}
    if any(isinstance(value, list) for value in values.values()):
        return {text: _multi(text, value, parts) for text, value in values.items()}
    kinds = {type(value) for value in values.values()}
    if bool in kinds and kinds & {int, float}:
        raise _mixed("truth values and numbers", values, parts)
    if float in kinds and any(isinstance(value, float) and not value.is_integer() for value in values.values()):
        if str in kinds:
            raise _mixed("text and numbers", values, parts)
        return {text: (_json(float(value)), "") for text, value in values.items()}
    texts = {text: _class(value) for text, value in values.items()}
    _refuse_spellings({new for new, _ in texts.values()}, values, parts)
    return {text: (_json(new), reason) for text, (new, reason) in texts.items()}


def _class(value: Any) -> tuple[str, str]:
    """The class name of one label, and why it is not what stood in the file."""
    if isinstance(value, str):
        bare = value.strip()
        return bare, "" if bare == value else "white space around the label removed"
    if isinstance(value, bool):
        return str(value).lower(), f"the truth value {str(value).lower()} taken as a class"
    if isinstance(value, float):
        return str(int(value)), f"the number {value!r} taken as the class {int(value)}"
    return str(value), ""


def _multi(text: str, value: Any, parts: Sequence[Examples]) -> tuple[str, str]:
    items = value if isinstance(value, list) else [value]
    names = [_class(item) for item in items]
    reason = "" if isinstance(value, list) else "one label taken as a list of one"
    return _json([name for name, _ in names]), reason


def _refuse_spellings(names: set[str], values: dict[str, Any], parts: Sequence[Examples]) -> None:
    """`1`, `01` and `1.0` as text in one column are one class or three: nobody can say."""
    numbers: dict[float, set[str]] = {}
    for name in names:
        if name.lstrip("+-").replace(".", "", 1).isdigit() and name.isascii():
            numbers.setdefault(float(name), set()).add(name)
    for spellings in numbers.values():
        if len(spellings) > 1:
            chosen = {text: value for text, value in values.items() if _class(value)[0] in spellings}
            raise _mixed(f"one number in {len(spellings)} spellings", chosen, parts)


def _mixed(what: str, values: dict[str, Any], parts: Sequence[Examples]) -> DataError:
    problems = [
        Problem(f"label: {text}", _first(text, parts), "write every label in one way") for text in sorted(values)[:8]
    ]
    head = Problem(f"the labels mix {what}: {', '.join(sorted(values)[:8])}", "data.train", "write them in one way")
    return DataError(head.what, problems=[head, *problems])


def _first(text: str, parts: Sequence[Examples]) -> str:
    for part in parts:
        for chunk in part.chunks:
            if chunk.labels is not None and (at := chunk.labels.index(text).as_py()) >= 0:
                return str(chunk.place(at, part.files))
    return ""


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
