"""Examples in Arrow columns: a `Sequence[Example]` whose memory is the text itself and not Python objects.

Rows are collected into chunks; an Example is built when it is asked for. A selection (a split, a shuffle)
is an array of row numbers over the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import orjson
import pyarrow as pa

from luthier.core.types import Example, Source, Turn

CHUNK_ROWS, CHUNK_BYTES = 4096, 16 << 20
_ROLES = ("system", "user", "assistant", "tool", "text")
_ROLE_CODE = {role: code for code, role in enumerate(_ROLES)}
_TRAIN = (None, False, True)
_TRAIN_CODE = {None: 0, False: 1, True: 2}
_WORDS = ("group", "parent", "split", "task", "rejected")


@dataclass
class Chunk:
    """Up to CHUNK_ROWS rows. Turn i of row r is at `offsets[r] + i` of the flat turn columns."""

    ids: pa.Array
    files: np.ndarray
    lines: np.ndarray
    offsets: np.ndarray
    roles: np.ndarray
    trains: np.ndarray
    texts: pa.Array
    contexts: pa.Array | None
    labels: pa.Array | None
    extras: pa.Array | None
    words: dict[str, pa.Array]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        arrays = [self.ids, self.texts, self.contexts, self.labels, self.extras, *self.words.values()]
        plain = (self.files, self.lines, self.offsets, self.roles, self.trains)
        return sum(array.nbytes for array in arrays if array is not None) + sum(array.nbytes for array in plain)

    def row(self, at: int, files: Sequence[str]) -> Example:
        """One Example."""
        first, end = int(self.offsets[at]), int(self.offsets[at + 1])
        texts, contexts = self.texts, self.contexts
        turns = tuple(
            Turn(
                _ROLES[self.roles[turn]],
                texts[turn].as_py(),
                "" if contexts is None else contexts[turn].as_py(),
                _TRAIN[self.trains[turn]],
            )
            for turn in range(first, end)
        )
        words = {name: array[at].as_py() for name, array in self.words.items()}
        extra = _one(self.extras, at)
        return Example(
            id=self.ids[at].as_py(),
            turns=turns,
            source=Source(files[self.files[at]], int(self.lines[at])),
            label=_label(_one(self.labels, at)),
            extra=orjson.loads(extra) if extra else {},
            **words,
        )

    def rows(self, start: int, stop: int, files: Sequence[str]) -> Iterator[Example]:
        """Examples of a run of rows, built column by column."""
        first = int(self.offsets[start])
        offsets = (self.offsets[start : stop + 1] - first).tolist()
        count = offsets[-1]
        texts = self.texts.slice(first, count).to_pylist()
        contexts = self.contexts.slice(first, count).to_pylist() if self.contexts is not None else None
        roles = [_ROLES[code] for code in self.roles[first : first + count].tolist()]
        trains = [_TRAIN[code] for code in self.trains[first : first + count].tolist()]
        size = stop - start
        ids = self.ids.slice(start, size).to_pylist()
        labels = _column(self.labels, start, size)
        extras = _column(self.extras, start, size)
        words = {name: _column(self.words.get(name), start, size) for name in _WORDS}
        groups, parents, splits = words["group"], words["parent"], words["split"]
        tasks, rejected = words["task"], words["rejected"]
        places = zip(self.files[start:stop].tolist(), self.lines[start:stop].tolist(), strict=True)
        for row, (file, line) in enumerate(places):
            turns = tuple(
                Turn(roles[at], texts[at], contexts[at] if contexts is not None else "", trains[at])
                for at in range(offsets[row], offsets[row + 1])
            )
            yield Example(
                ids[row],
                turns,
                Source(files[file], line),
                _label(labels[row]) if labels is not None else None,
                groups[row] if groups is not None else None,
                parents[row] if parents is not None else None,
                splits[row] if splits is not None else None,
                tasks[row] if tasks is not None else None,
                rejected[row] if rejected is not None else None,
                orjson.loads(extras[row]) if extras is not None and extras[row] else {},
            )


def _one(array: pa.Array | None, at: int) -> Any:
    return None if array is None else array[at].as_py()


def _column(array: pa.Array | None, start: int, size: int) -> list[Any] | None:
    return None if array is None else array.slice(start, size).to_pylist()


def _label(text: str | None) -> Any:
    if text is None:
        return None
    value = orjson.loads(text)
    return tuple(value) if isinstance(value, list) else value


class Builder:
    """Collects Examples into chunks."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.files: list[str] = []
        self.rows = 0
        self.nbytes = 0
        self._codes: dict[str, int] = {}
        self._pending: list[Example] = []
        self._bytes = 0

    def append(self, example: Example) -> None:
        """Add one row."""
        self._pending.append(example)
        self.rows += 1
        self._bytes += sum(len(turn.text) + len(turn.context) for turn in example.turns)
        if len(self._pending) >= CHUNK_ROWS or self._bytes >= CHUNK_BYTES:
            self._flush()

    def extend(self, examples: Iterable[Example]) -> None:
        """Add rows."""
        for example in examples:
            self.append(example)

    def _code(self, file: str) -> int:
        code = self._codes.get(file)
        if code is None:
            code = self._codes[file] = len(self.files)
            self.files.append(file)
        return code

    def _flush(self) -> None:
        if not self._pending:
            return
        rows, self._pending, self._bytes = self._pending, [], 0
        turns = [turn for row in rows for turn in row.turns]
        words = {name: values for name in _WORDS if any(values := [getattr(row, name) for row in rows])}
        labels = [None if row.label is None else orjson.dumps(row.label).decode() for row in rows]
        extras = [orjson.dumps(dict(row.extra), default=str).decode() if row.extra else None for row in rows]
        contexts = [turn.context for turn in turns]
        chunk = Chunk(
            ids=_array([row.id for row in rows]),
            files=np.array([self._code(row.source.file) for row in rows], np.int32),
            lines=np.array([row.source.line for row in rows], np.int64),
            offsets=np.cumsum([0, *(len(row.turns) for row in rows)], dtype=np.int32),
            roles=np.array([_ROLE_CODE[turn.role] for turn in turns], np.int8),
            trains=np.array([_TRAIN_CODE[turn.train] for turn in turns], np.int8),
            texts=_array([turn.text for turn in turns]),
            contexts=_array(contexts) if any(contexts) else None,
            labels=_optional(labels),
            extras=_optional(extras),
            words={name: _array(values) for name, values in words.items()},
        )
        self.chunks.append(chunk)
        self.nbytes += chunk.nbytes

    def finish(self) -> Examples:
        """The sequence; the builder may go on being filled for another one only after this."""
        self._flush()
        return Examples(self.chunks, self.files)


def _optional(values: list[str | None]) -> pa.Array | None:
    return _array(values) if any(value is not None for value in values) else None


def _array(values: Sequence[str | None]) -> pa.Array:
    """A text column from the system's allocator: Arrow's own keeps half as much again in reserve."""
    return pa.array(values, pa.string(), memory_pool=pa.system_memory_pool())


@dataclass
class Examples(Sequence[Example]):
    """Rows of chunks, all of them in order or those that `picked` names. Indexing builds the Example."""

    chunks: list[Chunk]
    files: list[str]
    picked: np.ndarray | None = None
    suffixes: dict[int, str] = field(default_factory=dict)
    """Positions whose id gets an ending: repeats of a row by a source's weight."""

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self.chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.picked is None else len(self.picked)

    @overload
    def __getitem__(self, at: int) -> Example: ...

    @overload
    def __getitem__(self, at: slice) -> Examples: ...

    def __getitem__(self, at: int | slice) -> Example | Examples:
        if isinstance(at, slice):
            return self.select(np.arange(len(self))[at])
        at = int(at)
        at += len(self) if at < 0 else 0
        if not 0 <= at < len(self):
            raise IndexError(at)
        row = at if self.picked is None else int(self.picked[at])
        found = self._row(row)
        return self._renamed(found, at) if self.suffixes else found

    def _row(self, row: int) -> Example:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        inside = row - int(self._starts[number])
        return self.chunks[number].row(inside, self.files)

    def _renamed(self, example: Example, at: int) -> Example:
        from dataclasses import replace

        ending = self.suffixes.get(at)
        return replace(example, id=example.id + ending) if ending else example

    def __iter__(self) -> Iterator[Example]:
        if self.picked is not None:
            for at in range(len(self)):
                yield self[at]
            return
        for chunk in self.chunks:
            yield from chunk.rows(0, len(chunk), self.files)

    def select(self, positions: np.ndarray) -> Examples:
        """A view of the rows at these positions, in this order; a position may come twice."""
        positions = np.asarray(positions, np.int64)
        index = positions if self.picked is None else self.picked[positions]
        suffixes = {new: self.suffixes[old] for new, old in enumerate(positions.tolist()) if old in self.suffixes}
        return Examples(self.chunks, self.files, index, suffixes)

    @property
    def nbytes(self) -> int:
        """Memory of the columns, shared by all views."""
        return sum(chunk.nbytes for chunk in self.chunks)

    def column(self, name: str) -> list[str | None]:
        """One of id, group, split, task, parent, rejected for every row, without building Examples."""
        found = self._values(lambda chunk: chunk.ids if name == "id" else chunk.words.get(name))
        for at, ending in self.suffixes.items() if name == "id" else ():
            found[at] = f"{found[at]}{ending}"
        return found

    def label_texts(self) -> list[str | None]:
        """The labels as JSON texts, without building Examples."""
        return self._values(lambda chunk: chunk.labels)

    def _values(self, of: Callable[[Chunk], pa.Array | None]) -> list[str | None]:
        if all(of(chunk) is None for chunk in self.chunks):
            return [None] * len(self)
        found: list[str | None] = []
        for chunk in self.chunks:
            array = of(chunk)
            found += array.to_pylist() if array is not None else [None] * len(chunk)
        return found if self.picked is None else [found[row] for row in self.picked.tolist()]

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(index into `files`, line) of every row."""
        if not self.chunks:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        files = np.concatenate([chunk.files for chunk in self.chunks])
        lines = np.concatenate([chunk.lines for chunk in self.chunks])
        return (files, lines) if self.picked is None else (files[self.picked], lines[self.picked])


def of(examples: Sequence[Example]) -> Examples:
    """The same rows in columns (as they are when they already stand in columns)."""
    if isinstance(examples, Examples):
        return examples
    builder = Builder()
    builder.extend(examples)
    return builder.finish()
