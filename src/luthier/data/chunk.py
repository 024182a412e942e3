"""A chunk of rows in Arrow and numpy columns; an Example is built when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from luthier.core.types import Example, Source, Turn
from luthier.data.arrow import numbers

ROLES = ("system", "user", "assistant", "tool", "text")
TRAIN = (None, False, True)
WORDS = ("group", "parent", "split", "task", "rejected")


@dataclass
class Chunk:
    """Up to CHUNK_ROWS rows. Turn i of row r is at `offsets[r] + i` of the flat turn columns."""

    ids: pa.Array
    files: np.ndarray
    lines: np.ndarray
    numbers: np.ndarray | None
    """Row numbers in the file, where the lines do not tell rows apart."""
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
        plain = (self.files, self.lines, self.numbers, self.offsets, self.roles, self.trains)
        return sum(array.nbytes for array in (*arrays, *plain) if array is not None)

    def place(self, at: int, files: Sequence[str]) -> Source:
        """Where a row came from."""
        number = 0 if self.numbers is None else int(self.numbers[at])
        return Source(files[self.files[at]], int(self.lines[at]), number)

    def take(self, rows: np.ndarray) -> Chunk:
        """The rows at these places, in this order, as a chunk of their own."""
        first, count = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(count)])
        turns = np.repeat(first - offsets[:-1], count) + np.arange(offsets[-1])
        picked, inside = numbers(rows), numbers(turns)

        def of(array: pa.Array | None, index: pa.Array) -> pa.Array | None:
            return None if array is None else array.take(index)

        return Chunk(
            ids=self.ids.take(picked),
            files=self.files[rows],
            lines=self.lines[rows],
            numbers=None if self.numbers is None else self.numbers[rows],
            offsets=offsets,
            roles=self.roles[turns],
            trains=self.trains[turns],
            texts=self.texts.take(inside),
            contexts=of(self.contexts, inside),
            labels=of(self.labels, picked),
            extras=of(self.extras, picked),
            words={name: array.take(picked) for name, array in self.words.items()},
        )

    def digest(self) -> bytes:
        """Hash of all that the columns hold."""
        found = hashlib.blake2b(digest_size=16)
        texts = [self.ids, self.texts, self.contexts, self.labels, self.extras]
        for name, array in [*enumerate(texts), *sorted(self.words.items())]:
            found.update(f"{name} {None if array is None else len(array)} ".encode())
            for buffer in array.buffers() if array is not None else ():
                found.update(b"-" if buffer is None else memoryview(buffer))
        for plain in (self.offsets, self.roles, self.trains):
            found.update(np.ascontiguousarray(plain).tobytes())
        return found.digest()

    def row(self, at: int, files: Sequence[str]) -> Example:
        """One Example."""
        first, end = int(self.offsets[at]), int(self.offsets[at + 1])
        texts, contexts = self.texts, self.contexts
        turns = tuple(
            Turn(
                ROLES[self.roles[turn]],
                texts[turn].as_py(),
                "" if contexts is None else contexts[turn].as_py(),
                TRAIN[self.trains[turn]],
            )
            for turn in range(first, end)
        )
        words = {name: array[at].as_py() for name, array in self.words.items()}
        extra = _one(self.extras, at)
        return Example(
            id=self.ids[at].as_py(),
            turns=turns,
            source=self.place(at, files),
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
        roles = [ROLES[code] for code in self.roles[first : first + count].tolist()]
        trains = [TRAIN[code] for code in self.trains[first : first + count].tolist()]
        size = stop - start
        ids = self.ids.slice(start, size).to_pylist()
        labels = _column(self.labels, start, size)
        extras = _column(self.extras, start, size)
        words = {name: _column(self.words.get(name), start, size) for name in WORDS}
        groups, parents, splits = words["group"], words["parent"], words["split"]
        tasks, rejected = words["task"], words["rejected"]
        numbers = [0] * size if self.numbers is None else self.numbers[start:stop].tolist()
        places = zip(self.files[start:stop].tolist(), self.lines[start:stop].tolist(), numbers, strict=True)
        for row, (file, line, number) in enumerate(places):
            turns = tuple(
                Turn(roles[at], texts[at], contexts[at] if contexts is not None else "", trains[at])
                for at in range(offsets[row], offsets[row + 1])
            )
            yield Example(
                ids[row],
                turns,
                Source(files[file], line, number),
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
