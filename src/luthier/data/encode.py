"""Examples become rows: laid out as pieces, tokenised a block at a time, put together with numpy, cached on disk.

While the tokenizer (which releases Python's lock) works on one block, the block before is put together and the
next one is laid out. Equal texts of a block are tokenised once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.errors import DataError
from luthier.core.types import Example, Spoken
from luthier.data import columns, encode_cache
from luthier.data.cutting import Part, inner_tokens, shortened, windows
from luthier.data.encoded import Collector, EncodedRows
from luthier.data.settings import DataSettings
from luthier.data.templates.base import Piece, Tokens, begins_with_bos

BATCH = 2048
STOP, BOS = -1, -2
"""Codes of the two fixed texts that are no text: the stop token and what stands before a row."""


def encode(
    examples: Sequence[Example],
    template: Any,
    tokenizer: Any,
    settings: DataSettings,
    task: str,
    *,
    labels: Sequence[str] | None,
    stop_id: int,
    tasks: Sequence[str] = (),
    spoken: Spoken | None = None,
    cache: Path | None = None,
) -> EncodedRows:
    """Rows of these examples. Plain documents become windows `id#0`, `id#1`, …; too long rows lose a part of their
    prompt or are dropped, never a part of the answer. With a `cache` folder, rows that were encoded before in the
    same way are read from it. `tasks`: names in the order of a multi-task method, which every row must belong to.
    `spoken`: labels are answers to be trained and scored, not classes of a head."""
    bound = template.bound(tokenizer) if hasattr(template, "bound") else template
    held = columns.of(examples)
    work = _Encoder(bound, tokenizer, settings, task, labels, stop_id, tasks, spoken)
    if cache is None:
        return work.run(held)
    return encode_cache.through(cache, work.key(held), lambda: work.run(held))


class _Block:
    """Rows laid out as pieces: each is a code (a distinct text of the block, or below 0 a fixed one) and a mark."""

    def __init__(self, examples: list[Example]):
        self.examples = examples
        self.counts: list[int] = []
        self.codes: list[int] = []
        self.trained: list[bool] = []
        self.texts: dict[str, int] = {}


class _Encoder:
    """The settings of one encoding, and the ids of what every row has in common."""

    def __init__(
        self, template: Any, tokenizer: Any, settings: DataSettings, task: str, labels: Any, stop_id: int,
        tasks: Sequence[str], spoken: Spoken | None,
    ):  # fmt: skip
        self.template, self.tokenizer, self.settings, self.task = template, tokenizer, settings, task
        self.spoken, self.headed = spoken, task == "classify" and spoken is None
        self.labels, self.stop_id, self.tasks = tuple(labels or ()), stop_id, tuple(tasks)
        self.classes = {name: index for index, name in enumerate(self.labels)}
        self.bos = begins_with_bos(tokenizer)
        self.tokens = Tokens(tokenizer)
        self.fixed = [np.array([stop_id]), np.array(self.bos, np.int64)]
        self._codes: dict[tuple[str, bool], int] = {}

    @cached_property
    def inner(self) -> np.ndarray:
        """Which tokens begin inside a character."""
        return inner_tokens(self.tokenizer)

    def key(self, examples: columns.Examples) -> str:
        """Hash of all that decides the rows."""
        self.tokens.ready()
        others = [self.task, self.labels, self.stop_id, self.bos, self.tasks]
        if self.spoken is not None:
            others.append(["spoken", self.spoken.instruction])
        return encode_cache.key(examples, self.template, self.tokenizer, self.settings, others)

    def run(self, examples: columns.Examples) -> EncodedRows:
        """Lay out, tokenise, put together."""
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        made = Collector(max(largest, self.stop_id) + 1)
        for block, ids in self._tokenised(examples):
            self._assemble(made, block, *ids)
        return made.finish()

    def _tokenised(self, examples: columns.Examples) -> Iterator[tuple[_Block, tuple[np.ndarray, np.ndarray]]]:
        waiting: tuple[_Block, Future[Any]] | None = None
        with ThreadPoolExecutor(1, "tokenize") as pool:
            for rows in examples.blocks(BATCH):
                block, fresh = self._lay(rows)
                if waiting is None or fresh:
                    if waiting is not None:
                        waiting[1].result()  # the tokenizer's mode must not change while it works
                    for text, first in fresh:
                        self._fix(text, first)
                    self.tokens.ready()
                future = pool.submit(self.tokens.start, list(block.texts))
                if waiting is not None:
                    yield waiting[0], self.tokens.finish(waiting[1].result())
                waiting = (block, future)
            if waiting is not None:
                yield waiting[0], self.tokens.finish(waiting[1].result())

    def _lay(self, rows: list[Example]) -> tuple[_Block, list[tuple[str, bool]]]:
        """The block, and template texts that were not seen before."""
        block = _Block(rows)
        fresh: list[tuple[str, bool]] = []
        codes, trained, texts, known = block.codes, block.trained, block.texts, self._codes
        for row in rows:
            pieces = self._pieces(row)
            codes.append(BOS)
            trained.append(False)
            for at, piece in enumerate(pieces):
                if piece.stop:
                    code = STOP
                elif piece.control:
                    entry = (piece.text, at == 0)
                    code = known.get(entry, 0)
                    if not code:
                        code = known[entry] = -len(known) - 3
                        fresh.append(entry)
                else:
                    code = texts.setdefault(piece.text, len(texts))
                codes.append(code)
                trained.append(piece.trained)
            block.counts.append(len(pieces) + 1)
        return block, fresh

    def _fix(self, text: str, first: bool) -> None:
        """Remember a template text; a BOS that the template writes at the very beginning is not said twice."""
        ids = self.tokens.control(text)
        if first and self.bos and ids[:1] == self.bos:
            ids = ids[1:]
        self.fixed.append(np.array(ids, np.int64))

    def _pieces(self, example: Example) -> list[Piece]:
        if self.headed:
            found: list[Piece] = self.template.prompt(example.turns)
            return [piece for piece in found if piece.text.strip() or not piece.control]
        pieces: list[Piece] = self.template.pieces(self.spoken.turns(example) if self.spoken else example.turns)
        if _goes_on(example):
            pieces = [piece for piece in pieces if not piece.stop]
        if self.settings.loss_on == "everything":
            pieces = [Piece(p.text, True, p.control, p.stop) for p in pieces]
        elif self.settings.loss_on == "last_answer":
            last = max((i for i, p in enumerate(pieces) if p.stop and p.trained), default=-1)
            pieces = [
                p if i in (last, last - 1) else Piece(p.text, False, p.control, p.stop) for i, p in enumerate(pieces)
            ]
        end = next((at for at in range(len(pieces), 0, -1) if pieces[at - 1].trained), len(pieces))
        return pieces[:end]

    def _assemble(self, made: Collector, block: _Block, ids: np.ndarray, edges: np.ndarray) -> None:
        """Gather the ids of all pieces of the block; only rows that need cutting are looked at one by one."""
        codes = np.array(block.codes)
        before = np.cumsum([0, *(len(one) for one in self.fixed)])
        starts = np.concatenate(
            [before[-1] + edges[:, 0], before[-2::-1]]
        )  # a fixed text stands at its code from behind
        sizes = np.concatenate([edges[:, 1], np.diff(before)[::-1]])
        pool = np.concatenate([*self.fixed, ids])
        lengths = sizes[codes]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        flat = pool[np.repeat(starts[codes] - bounds[:-1], lengths) + np.arange(bounds[-1])]
        trained = np.repeat(np.array(block.trained), lengths)
        row_edges = np.concatenate([[0], np.cumsum(block.counts)])
        row_bounds = bounds[row_edges]
        _Rows(self, made, block, flat, trained, row_bounds, bounds, row_edges).place()

    def task_of(self, example: Example) -> int:
        """Place of the row's task among the method's; 0 where there is at most one."""
        if example.task in self.tasks:
            return self.tasks.index(example.task)
        if not self.tasks or (example.task is None and len(self.tasks) == 1):
            return 0
        what = "the row belongs to no task" if example.task is None else f"there is no prefix for {example.task!r}"
        raise DataError(
            what, where=str(example.source), remedy=f"name the task of each source: {', '.join(self.tasks)}"
        )

    def target(self, example: Example) -> Any:
        """Class index, value, or 0/1 for every class; None for what is not classified."""
        if self.task != "classify":
            return None
        label = example.label
        if isinstance(label, tuple):
            return [int(name in label) for name in self.classes]
        if str(label) in self.classes:
            return self.classes[str(label)]
        try:
            if self.labels == ("value",) or not isinstance(label, str):
                return float(label)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise DataError(
                f"the label {label!r} is no number", where=str(example.source), remedy="a regression needs numbers"
            ) from None
        raise DataError(
            f"the label {label!r} is not among the training classes",
            where=str(example.source),
            remedy=f"known: {', '.join(list(self.classes)[:20])}",
        )


def _goes_on(example: Example) -> bool:
    """Whether a section of a document has another one behind it: then the text does not end here."""
    number, count = example.extra.get("part"), example.extra.get("parts")
    return isinstance(number, int) and isinstance(count, int) and number + 1 < count


def _document(example: Example) -> bool:
    return len(example.turns) == 1 and example.turns[0].role == "text"


class _Rows:
    """The rows of an assembled block on their way into the collector."""

    def __init__(
        self, encoder: _Encoder, made: Collector, block: _Block, ids: np.ndarray, trained: np.ndarray,
        bounds: np.ndarray, piece_bounds: np.ndarray, piece_edges: np.ndarray,
    ):  # fmt: skip
        self.encoder, self.made, self.block, self.ids, self.trained = encoder, made, block, ids, trained
        self.bounds, self.piece_bounds, self.piece_edges = bounds, piece_bounds, piece_edges
        self.targets = [encoder.target(row) for row in block.examples]
        self.tasks = [encoder.task_of(row) for row in block.examples]
        self.names: list[str] = []
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        self.sizes: list[int] = []
        self.kept: list[int] = []

    def place(self) -> None:
        """Runs of rows that fit go over as they are; the others are cut, or dropped."""
        lengths = np.diff(self.bounds)
        odd = lengths > self.encoder.settings.max_length
        if not self.encoder.headed:
            odd |= (lengths < 2) | (_later(self.trained, self.bounds) == 0)
        before = 0
        for at in [*np.flatnonzero(odd).tolist(), len(lengths)]:
            self._run(before, at)
            if at < len(lengths):
                self._odd(at)
            before = at + 1
        self._hand_over()

    def _run(self, start: int, stop: int) -> None:
        if start == stop:
            return
        part = slice(int(self.bounds[start]), int(self.bounds[stop]))
        self.parts.append((self.ids[part], self.trained[part]))
        self.names += [row.id for row in self.block.examples[start:stop]]
        self.sizes += np.diff(self.bounds[start : stop + 1]).tolist()
        self.kept += range(start, stop)

    def _one(self, at: int, name: str, ids: np.ndarray, trained: np.ndarray) -> None:
        self.parts.append((ids, trained))
        self.names.append(name)
        self.sizes.append(len(ids))
        self.kept.append(at)

    def _odd(self, at: int) -> None:
        example, size = self.block.examples[at], self.encoder.settings.max_length
        part = slice(int(self.bounds[at]), int(self.bounds[at + 1]))
        ids, trained = self.ids[part], self.trained[part]
        if not self.encoder.headed:
            if len(ids) < 2 or not trained[1:].any():
                reason = "nothing to predict" if len(ids) < 2 else "no token is trained"
                self.made.drop(example.id, str(example.source), reason, untrained=True)
                return
            if _document(example):
                self._windows(at, ids, trained)
                return
        cut = None if self.encoder.settings.truncate == "drop" else self._shortened(at, len(ids))
        if cut is None and self.encoder.headed and self.encoder.settings.truncate != "drop":
            cut = ids[:size], trained[:size]
        if cut is None:
            reason = f"{len(ids)} tokens do not fit max_length {size}"
            self.made.drop(example.id, str(example.source), reason)
            return
        self.made.cut["prompt_cut"] += 1
        self.made.cut["tokens_cut"] += len(ids) - len(cut[0])
        self._one(at, example.id, *cut)

    def _shortened(self, at: int, length: int) -> tuple[np.ndarray, np.ndarray] | None:
        parts = []
        for piece in range(int(self.piece_edges[at]), int(self.piece_edges[at + 1])):
            ids = self.ids[int(self.piece_bounds[piece]) : int(self.piece_bounds[piece + 1])]
            trained = self.block.trained[piece]
            parts.append(Part(ids, trained, self.block.codes[piece] >= 0 and not trained))
        cut = shortened(parts, self.encoder.settings.max_length, self.encoder.inner)
        if cut is None:
            return None
        marks = [np.full(len(part.ids), part.trained) for part in cut]
        return np.concatenate([part.ids for part in cut]), np.concatenate(marks)

    def _windows(self, at: int, ids: np.ndarray, trained: np.ndarray) -> None:
        name, settings = self.block.examples[at].id, self.encoder.settings
        found = windows(ids, settings.max_length, settings.stride, self.encoder.inner)
        for number, (start, stop, fresh) in enumerate(found):
            marks = trained[start:stop].copy()
            marks[: fresh - start] = False
            self._one(at, f"{name}#{number}", ids[start:stop], marks)
            self.made.cut["windows"] += 1

    def _hand_over(self) -> None:
        if not self.parts:
            return
        ids = np.concatenate([part[0] for part in self.parts])
        trained = np.concatenate([part[1] for part in self.parts])
        targets = [self.targets[at] for at in self.kept] if self.encoder.task == "classify" else None
        self.made.add(self.names, ids, trained, self.sizes, targets, [self.tasks[at] for at in self.kept])


def _later(marks: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """How many of each row are set, but for its first place: nothing stands before it to predict it from."""
    total = np.concatenate([[0], np.cumsum(marks)])
    return total[bounds[1:]] - total[np.minimum(bounds[:-1] + 1, bounds[1:])]
