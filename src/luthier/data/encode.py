"""Examples become rows: tokenised in batches, truncated from the prompt, kept in flat arrays, cached on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.errors import DataError
from luthier.core.fingerprint import of_value
from luthier.core.types import IGNORE, Example, Row
from luthier.data.settings import DataSettings
from luthier.data.templates.base import Piece, begins_with_bos, tokenize

BATCH = 512
VERSION = 1


@dataclass
class EncodedRows(Sequence[Row]):
    """Rows over flat int32 arrays. `cut` counts truncations, `dropped` lists rows that could not be kept."""

    ids: np.ndarray
    labels: np.ndarray
    bounds: np.ndarray
    names: list[str]
    targets: list[Any] | None = None
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
        part = slice(int(self.bounds[index]), int(self.bounds[index + 1]))
        target = None if self.targets is None else self.targets[index]
        task = 0 if self.tasks is None else int(self.tasks[index])
        return Row(self.names[index], self.ids[part], self.labels[part], target, task)

    @property
    def lengths(self) -> np.ndarray:
        """[rows] tokens of each row."""
        return np.diff(self.bounds)


@dataclass
class _Collector:
    ids: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=lambda: {"prompt_cut": 0, "windows": 0, "dropped": 0, "tokens_cut": 0})
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, ids: Sequence[int], labels: Sequence[int], target: Any, task: int) -> None:
        self.ids.append(np.asarray(ids, dtype=np.int32))
        self.labels.append(np.asarray(labels, dtype=np.int32))
        self.names.append(name)
        self.targets.append(target)
        self.tasks.append(task)

    def drop(self, example: Example, reason: str) -> None:
        self.cut["dropped"] += 1
        self.dropped.append({"where": str(example.source), "row": example.id, "reason": reason})

    def rows(self, with_targets: bool) -> EncodedRows:
        bounds = np.zeros(len(self.ids) + 1, dtype=np.int64)
        np.cumsum([len(one) for one in self.ids], out=bounds[1:])
        empty = np.zeros(0, dtype=np.int32)
        return EncodedRows(
            np.concatenate([empty, *self.ids]),
            np.concatenate([empty, *self.labels]),
            bounds,
            self.names,
            self.targets if with_targets else None,
            np.asarray(self.tasks, dtype=np.int32),
            self.cut,
            self.dropped,
        )


def encode(
    examples: Sequence[Example],
    template: Any,
    tokenizer: Any,
    settings: DataSettings,
    task: str,
    *,
    labels: Sequence[str] | None,
    stop_id: int,
    cache: Path | None = None,
) -> EncodedRows:
    """Rows of these examples. Plain documents become windows `id#0`, `id#1`, …; too long rows lose the beginning
    of their prompt or are dropped, never a part of the answer."""
    bound = template.bound(tokenizer) if hasattr(template, "bound") else template
    made = _Collector()
    tasks = {name: index for index, name in enumerate(sorted({e.task for e in examples if e.task}))}
    classes = {name: index for index, name in enumerate(labels or ())}
    bos = begins_with_bos(tokenizer)
    for start in range(0, len(examples), BATCH):
        part = [examples[index] for index in range(start, min(start + BATCH, len(examples)))]
        for example, pieces in zip(part, _tokenised(part, bound, tokenizer, settings, task), strict=True):
            target = _target(example, classes, task)
            number = tasks.get(example.task or "", 0)
            _place(made, example, pieces, bos, stop_id, settings, target, number)
    return made.rows(task == "classify")


def _pieces(example: Example, template: Any, settings: DataSettings, task: str) -> list[Piece]:
    if task == "classify":
        return [piece for piece in template.prompt(example.turns) if piece.text.strip() or not piece.control]
    pieces = template.pieces(example.turns)
    if settings.loss_on == "everything":
        return [Piece(p.text, True, p.control, p.stop) for p in pieces]
    if settings.loss_on == "last_answer":
        last = max((i for i, p in enumerate(pieces) if p.stop and p.trained), default=-1)
        return [p if i in (last, last - 1) else Piece(p.text, False, p.control, p.stop) for i, p in enumerate(pieces)]
    return list(pieces)


def _tokenised(
    part: Sequence[Example], template: Any, tokenizer: Any, settings: DataSettings, task: str
) -> Iterator[list[tuple[Piece, list[int]]]]:
    """Pieces with their ids; all texts of the batch go through the tokenizer at once, equal ones once."""
    listed = [_pieces(example, template, settings, task) for example in part]
    found: dict[tuple[bool, str], list[int]] = {}
    for control in (False, True):
        texts = list({p.text: None for pieces in listed for p in pieces if p.control == control and p.text})
        for text, ids in zip(texts, tokenize(tokenizer, texts, control), strict=True):
            found[control, text] = ids
    for pieces in listed:
        yield [(piece, found.get((piece.control, piece.text), [])) for piece in pieces]


def _target(example: Example, classes: dict[str, int], task: str) -> Any:
    if task != "classify":
        return None
    label = example.label
    if isinstance(label, tuple):
        return tuple(int(name in label) for name in classes)
    if isinstance(label, int | float) and not isinstance(label, bool) and str(label) not in classes:
        return float(label)
    if str(label) not in classes:
        raise DataError(
            f"the label {label!r} is not among the training classes",
            where=str(example.source),
            remedy=f"known: {', '.join(list(classes)[:20])}",
        )
    return classes[str(label)]


def _place(
    made: _Collector,
    example: Example,
    pieces: list[tuple[Piece, list[int]]],
    bos: list[int],
    stop_id: int,
    settings: DataSettings,
    target: Any,
    task: int,
) -> None:
    ids, labels = list(bos), [IGNORE] * len(bos)
    last = 0
    for piece, tokens in pieces:
        if piece.stop:
            tokens = [stop_id]
        elif piece.control and len(ids) == len(bos) and bos and tokens[:1] == bos:
            tokens = tokens[1:]
        ids += tokens
        labels += tokens if piece.trained else [IGNORE] * len(tokens)
        if piece.trained:
            last = len(ids)
    if target is None and last:
        ids, labels = ids[:last], labels[:last]
    document = len(example.turns) == 1 and example.turns[0].role == "text" and target is None
    if document:
        _windows(made, example, ids, labels, bos, settings, task)
        return
    if len(ids) > settings.max_length:
        cut = _truncate(ids, labels, len(bos), settings, target is not None)
        if cut is None:
            made.drop(example, f"{len(ids)} tokens do not fit max_length {settings.max_length}")
            return
        made.cut["prompt_cut"] += 1
        made.cut["tokens_cut"] += len(ids) - len(cut[0])
        ids, labels = cut
    if len(ids) < 2 and target is None:
        made.drop(example, "nothing to predict")
        return
    made.add(example.id, ids, labels, target, task)


def _truncate(
    ids: list[int], labels: list[int], head: int, settings: DataSettings, classified: bool
) -> tuple[list[int], list[int]] | None:
    """Cut the middle of the untrained beginning: its first quarter and its end are worth more. None: does not fit."""
    surplus = len(ids) - settings.max_length
    prompt = next((i for i, label in enumerate(labels) if label != IGNORE), len(labels))
    if settings.truncate == "drop":
        return None
    if classified:
        return ids[: settings.max_length], labels[: settings.max_length]
    keep = prompt - surplus
    if keep < head + min(8, prompt - head):
        return None
    first = head + (keep - head) // 4
    second = prompt - (keep - first)
    return ids[:first] + ids[second:], labels[:first] + labels[second:]


def _windows(
    made: _Collector,
    example: Example,
    ids: list[int],
    labels: list[int],
    bos: list[int],
    settings: DataSettings,
    task: int,
) -> None:
    """Every token of a document is trained in exactly one window (with `stride` tokens of earlier context)."""
    size = settings.max_length
    if len(ids) <= size:
        if len(ids) >= 2:
            made.add(example.id, ids, labels, None, task)
        else:
            made.drop(example, "nothing to predict")
        return
    overlap = max(1, min(settings.stride, size // 2))
    start, number = 0, 0
    while start < len(ids) - 1:
        stop = min(start + size, len(ids))
        part = labels[start:stop]
        if start:
            part = [IGNORE] * overlap + part[overlap:]
        made.add(f"{example.id}#{number}", ids[start:stop], part, None, task)
        made.cut["windows"] += 1
        if stop == len(ids):
            break
        start, number = stop - overlap, number + 1


def cache_key(examples: Sequence[Example], template: Any, tokenizer: Any, settings: DataSettings, task: str) -> str:
    """Hash of all that decides the rows."""
    return of_value(
        [
            VERSION,
            template.name,
            template.params.model_dump(),
            settings.model_dump(mode="json"),
            task,
            len(tokenizer),
            [(e.id, [t.text for t in e.turns], e.label) for e in examples],
        ]
    )
