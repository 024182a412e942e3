"""Loading: files become Examples, and every repair, drop and refusal is told with file, line, field and reason.

With `on_error: stop` the first faults (up to SHOWN) end the loading; with `skip` the rows are left out, counted
and listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, Problem
from luthier.core.events import Emit, silent
from luthier.core.fingerprint import of_file
from luthier.core.types import Example, Source
from luthier.data import read, read_labels
from luthier.data.columns import Builder, Examples
from luthier.data.formats.fields import Fields, Refused, Unused
from luthier.data.read import Located
from luthier.data.read_bytes import BOMB_BYTES, BOMB_RATIO, Fault, Raw
from luthier.data.read_choose import Chosen, choose, known_names
from luthier.data.read_sections import sections
from luthier.data.settings import DataSettings

SHOWN = 20
"""Faults that are collected before `on_error: stop` stops."""
LISTED = 100_000
"""Repairs and drops that are listed one by one; all are counted."""
_GROUPS = (
    "group", "group_id", "conversation_id", "conv_id", "dialog_id", "dialogue_id", "session_id", "thread_id",
    "document_id", "doc_id", "article_id", "user_id", "author_id", "person_id", "patient_id", "speaker_id",
)  # fmt: skip
_IDS = ("id", "_id", "index_id", "uid", "guid", "row_id", "task_id")


@dataclass
class LoadReport:
    """What the loading did. The lists hold {where, row, field, reason}."""

    read: int = 0
    repaired: list[dict[str, str]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """How many repairs ("repaired") and left-out rows ("dropped") there were; the lists end at LISTED."""

    def tell(self, kind: str, where: str, row: str, name: str, reason: str) -> None:
        """Note one repair or drop."""
        self.counts[kind] += 1
        listed = self.repaired if kind == "repaired" else self.dropped
        if len(listed) < LISTED:
            listed.append({"where": where, "row": row, "field": name, "reason": reason})


@dataclass
class Loaded:
    """Rows of `data.train`, and of the files that were given as validation and test."""

    examples: Examples
    given: dict[str, Examples]
    report: LoadReport
    max_rows: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    """file → weight of its source; only those that are not 1."""


def locate(settings: DataSettings) -> dict[str, list[Located]]:
    """What would be read; DataError for what does not exist. Cheap: nothing is opened."""
    return read.locate(settings)


def load(settings: DataSettings, task: str, emit: Emit = silent) -> Loaded:
    """Read everything. DataError with file:line for what cannot be understood."""
    report = LoadReport()
    located = locate(settings)
    parts: dict[str, Examples] = {}
    for part, sources in located.items():
        builder = Builder()
        for source in sources:
            _Reading(source, settings, task, report, builder, emit).run()
        parts[part] = builder.finish()
    examples = parts.pop("train")
    given = {part: rows for part, rows in parts.items() if located[part]}
    for name, rows in (("train", examples), *given.items()):
        if not len(rows):
            raise _nothing(name, report)
    read_labels.settle([examples, *given.values()], report)
    if any(getattr(settings.split, name) and name not in given for name in ("validation", "test")):
        examples = sections(examples)
    weights = {source.path: source.weight for source in located["train"] if source.weight != 1.0}
    return Loaded(examples, given, report, settings.max_rows, weights)


def _nothing(name: str, report: LoadReport) -> DataError:
    dropped = [Problem(f"{item['field']}: {item['reason']}", item["where"]) for item in report.dropped[:SHOWN]]
    files = ", ".join(str(item["path"]) for item in report.sources)
    what = Problem(f"no row is left of {report.read} read", f"data.{name}", f"look at {files or 'the files'}")
    return DataError(what.what, where=what.where, remedy=what.remedy, problems=[what, *dropped])


class _Reading:
    """One source on its way into the builder."""

    def __init__(
        self, source: Located, settings: DataSettings, task: str, report: LoadReport, builder: Builder, emit: Emit
    ):
        self.source, self.settings, self.task = source, settings, task
        self.report, self.builder, self.emit = report, builder, emit
        self.problems: list[Problem] = []
        self.kept = 0
        self.row, self.where = "", ""
        self._last_line, self._same = 0, 0
        self._start_bytes = builder.nbytes
        split = settings.split
        named = (split.group, split.stratify, split.by_time)
        self._keep = [name for name in named if name and name not in ("auto", "none")]
        self._group: str | None = None
        self._id: str | None = None
        self._split: str | None = None

    def run(self) -> None:
        """Read it all; raise for faults when the recipe says stop."""
        stream = read.rows(self.source, self.settings.encoding, known_names(), self.report.notes.append, self.task)
        head, faults = self._head(stream)
        for fault in faults:
            self._fault(fault)
        if head:
            chosen = choose([raw.value for raw in head], self.source, self.settings, self.task)
            self.report.notes += chosen.notes
            self._columns(head, chosen)
            self._all(chain(head, stream), chosen)
        if self.problems:
            raise DataError(f"{self.source.path}: rows that cannot be used", problems=self.problems)
        self._finish(chosen.format.name if head else "")

    def _head(self, stream: Iterator[Raw | Fault]) -> tuple[list[Raw], list[Fault]]:
        """The first rows, by which the format is chosen, and the faults among them."""
        items = list(islice(stream, 64))
        while items and not any(isinstance(item, Raw) for item in items):
            more = list(islice(stream, 64))
            if not more:
                break
            items += more
        return [item for item in items if isinstance(item, Raw)], [item for item in items if isinstance(item, Fault)]

    def _columns(self, head: list[Raw], chosen: Chosen) -> None:
        keys = {str(key) for raw in head for key in raw.value}
        lower = {key.lower(): key for key in sorted(keys, reverse=True)}
        asked = self.settings.split.group
        if asked not in ("auto", "none"):
            if asked not in keys:
                raise DataError(
                    f"{self.source.path} has no column {asked!r}",
                    where="data.split.group",
                    remedy=f"it has: {', '.join(sorted(keys))}",
                )
            self._group = asked
        elif asked == "auto":
            self._group = next((lower[name] for name in _GROUPS if name in lower), None)
        self._id = next((lower[name] for name in _IDS if name in lower), None)
        self._split = next((name for name in ("__split__", lower.get("split")) if name in keys), None)
        for name in self._keep:
            if name not in keys:
                raise DataError(f"{self.source.path} has no column {name!r}", where="data.split")

    def _all(self, stream: Iterator[Raw | Fault], chosen: Chosen) -> None:
        for item in stream:
            if isinstance(item, Fault):
                self._fault(item)
                continue
            self.report.read += 1
            self._one(item, chosen)
            if self.builder.rows % 50_000 == 0:
                self.emit("read", path=self.source.path, rows=self.kept)
                self._bounded()

    def _one(self, raw: Raw, chosen: Chosen) -> None:
        self._same = self._same + 1 if raw.line == self._last_line else 0
        self._last_line = raw.line
        self.row = f"{self.source.name}:{raw.line}" + (f"+{self._same}" if self._same else "")
        source = Source(self.source.path, raw.line, raw.row)
        self.where = str(source)
        value = chosen.renamed(raw.value)
        try:
            fields = Fields(
                value=value,
                columns=chosen.columns,
                source=source,
                id=self.row,
                told=self._repair,
                left_out=self._left_out,
                extra=self._extra(raw.value),
                group=self._group_of(raw.value),
                split=self._split_of(raw.value),
                task=self.source.task,
            )
            for example in chosen.format.examples(fields, self.task):
                self.builder.append(example)
                self.kept += 1
        except Refused as refused:
            self._refuse(raw.line, refused.field, refused.reason, refused.remedy)
        except Unused as unused:
            self._left_out(unused.field, unused.reason)

    def _extra(self, value: Mapping[str, Any]) -> dict[str, Any]:
        extra = {name: _plain(value.get(name)) for name in self._keep}
        if self._id is not None and isinstance(found := value.get(self._id), str | int):
            extra["id"] = _plain(found)
        return extra

    def _group_of(self, value: Mapping[str, Any]) -> str | None:
        found = value.get(self._group) if self._group is not None else None
        if found is None or found == "":
            return None
        if not isinstance(found, str | int):
            raise Refused(str(self._group), f"a group must be text or a whole number, not {type(found).__name__}")
        return f"{self._group}={found}"

    def _split_of(self, value: Mapping[str, Any]) -> str | None:
        if self.source.split is not None or self._split is None:
            return self.source.split
        found = value.get(self._split)
        word = read.split_word(found) if isinstance(found, str) else None
        if word is None:
            raise Refused(str(self._split), f"{found!r} is no split", "train, validation or test")
        return word

    def _repair(self, name: str, reason: str) -> None:
        self.report.tell("repaired", self.where, self.row, name, reason)

    def _left_out(self, name: str, reason: str) -> None:
        self.report.tell("dropped", self.where, self.row, name, reason)

    def _fault(self, fault: Fault) -> None:
        self.report.read += 1
        self.where = str(Source(self.source.path, fault.line, fault.row))
        self.row = f"{self.source.name}:{fault.line}"
        self._refuse(fault.line, fault.field, fault.reason, fault.remedy)

    def _refuse(self, line: int, name: str, reason: str, remedy: str) -> None:
        if self.settings.on_error == "skip":
            self.report.tell("dropped", self.where, self.row, name, reason)
            return
        what = f"{name}: {reason}" if name else reason
        self.problems.append(Problem(what, self.where, remedy or "mend the row, or set data.on_error: skip"))
        if len(self.problems) >= SHOWN:
            more = Problem(
                f"{SHOWN} rows so far; reading stopped here", self.source.path, "data.on_error: skip leaves them out"
            )
            raise DataError(f"{self.source.path}: rows that cannot be used", problems=[*self.problems, more])

    def _bounded(self) -> None:
        path = Path(self.source.path)
        grown = self.builder.nbytes - self._start_bytes
        if path.is_file() and grown > BOMB_BYTES and grown > BOMB_RATIO * path.stat().st_size:
            raise DataError(
                f"{path.stat().st_size >> 10} KiB on disk become more than {grown >> 20} MiB of rows: an archive bomb",
                where=self.source.path,
            )

    def _finish(self, name: str) -> None:
        path = Path(self.source.path)
        self._bounded()
        self.emit("read", path=self.source.path, rows=self.kept, format=name)
        sha = of_file(path) if path.is_file() else _of_saved(path)
        record = {"path": self.source.path, "sha256": sha, "rows": self.kept, "format": name}
        self.report.sources.append(record)


def _plain(value: Any) -> Any:
    """A value that JSON can hold: numbers, texts, null; anything else as its text."""
    if value is None or isinstance(value, str | bool):
        return value
    return value if isinstance(value, int | float) and abs(value) < 2**63 else str(value)


def _of_saved(path: Path) -> str:
    """A fingerprint of a folder of files; a hub dataset is named by its id alone."""
    from luthier.core.fingerprint import of_value

    if not path.is_dir():
        return of_value(str(path))
    return of_value({str(file.relative_to(path)): of_file(file) for file in sorted(path.rglob("*")) if file.is_file()})


def examples_of(rows: Sequence[Example]) -> Loaded:
    """Rows that are already Examples (made by a program) as if they had been loaded."""
    builder = Builder()
    builder.extend(rows)
    return Loaded(builder.finish(), {}, LoadReport(read=len(rows)))
