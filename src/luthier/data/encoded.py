"""Encoded rows as flat arrays: 3 bytes a token (5 for vocabularies above 65,536), in memory or mapped from disk.

ids     [T]    1 9 4 7 2 1 5 2
trained [T]    0 0 0 1 1 0 1 1
bounds  [R+1]  0         5     8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.core.types import IGNORE, Row
from luthier.data.arrow import texts

LISTED = 10_000
"""Rows left out that are listed; all are counted in `cut`."""


class Names(Sequence[str]):
    """Row ids in an Arrow column."""

    def __init__(self, column: pa.Array | pa.ChunkedArray):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        return self.column[at].as_py()


@dataclass
class EncodedRows(Sequence[Row]):
    """Rows over flat arrays. `cut` counts truncations, `dropped` lists rows that could not be kept."""

    ids: np.ndarray
    trained: np.ndarray
    bounds: np.ndarray
    names: Names
    targets: np.ndarray | None = None
    """[R] class index or value, or [R, classes] 0/1."""
    tasks: np.ndarray | None = None
    cut: dict[str, int] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids, labels = self._tokens(int(self.bounds[index]), int(self.bounds[index + 1]))
        task = 0 if self.tasks is None else int(self.tasks[index])
        return Row(self.names[index], ids, labels, self._target(index), task)

    def _target(self, index: int) -> Any:
        if self.targets is None:
            return None
        value = self.targets[index].tolist()
        return tuple(value) if isinstance(value, list) else value

    def _tokens(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self.ids[start:stop].astype(np.int32)
        return ids, np.where(self.trained[start:stop], ids, np.int32(IGNORE))

    def flat(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, labels, bounds from 0) of a run of rows."""
        edges = np.asarray(self.bounds[start : stop + 1], np.int64)
        return *self._tokens(int(edges[0]), int(edges[-1])), edges - edges[0]

    @property
    def lengths(self) -> np.ndarray:
        """[rows] tokens of each row."""
        return np.diff(self.bounds)


class Collector:
    """Gathers blocks of rows; `finish` puts them together without ever holding them twice."""

    def __init__(self, vocabulary: int):
        self.kind = np.uint16 if vocabulary <= 1 << 16 else np.int32
        self.cut = {"prompt_cut": 0, "windows": 0, "dropped": 0, "tokens_cut": 0, "untrained": 0}
        self.dropped: list[dict[str, Any]] = []
        self._ids: list[np.ndarray] = []
        self._trained: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._names: list[pa.Array] = []
        self._targets: list[np.ndarray] = []
        self._tasks: list[np.ndarray] = []

    def add(
        self, names: Sequence[str], ids: np.ndarray, trained: np.ndarray, sizes: Any, targets: Any, tasks: Any
    ) -> None:
        """Rows with their tokens put together; `sizes` are their lengths."""
        self._names.append(texts(names))
        self._ids.append(ids.astype(self.kind))
        self._trained.append(np.asarray(trained, bool))
        self._sizes.append(np.asarray(sizes, np.int64))
        self._tasks.append(np.asarray(tasks, np.int32))
        if targets is not None:
            self._targets.append(np.asarray(targets))

    def drop(self, row: str, where: str, reason: str, untrained: bool = False) -> None:
        """A row that is left out; `untrained`: because it has no trained token, not because it is too long."""
        self.cut["dropped"] += 1
        self.cut["untrained"] += untrained
        if len(self.dropped) < LISTED:
            self.dropped.append({"where": where, "row": row, "reason": reason, "untrained": untrained})

    def finish(self) -> EncodedRows:
        """The rows; forgets the blocks."""
        bounds = np.concatenate([[0], np.cumsum(_drained(self._sizes, np.int64), dtype=np.int64)])
        return EncodedRows(
            _drained(self._ids, self.kind),
            _drained(self._trained, np.bool_),
            bounds,
            Names(pa.chunked_array(self._names, pa.string())),
            _drained(self._targets, np.int64) if self._targets else None,
            _drained(self._tasks, np.int32),
            self.cut,
            self.dropped,
        )


def _drained(blocks: list[np.ndarray], kind: Any) -> np.ndarray:
    """The blocks in one array; each is freed when it was copied."""
    if not blocks:
        return np.zeros(0, kind)
    made = np.empty((sum(len(block) for block in blocks), *blocks[0].shape[1:]), blocks[0].dtype)
    at = 0
    blocks.reverse()
    while blocks:
        block = blocks.pop()
        made[at : at + len(block)] = block
        at += len(block)
    return made
