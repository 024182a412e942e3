"""What the tokens say: trained tokens, stop tokens, BOS, lengths. Counted on the very rows that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.core.types import IGNORE, Row
from luthier.data.encoded import EncodedRows

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHOWN, BLOCK = 20, 16384


@dataclass(frozen=True)
class Marks:
    """Ids that mean something: what ends an answer, and what begins a row."""

    stops: frozenset[int]
    bos: int | None
    expected_bos: int

    @classmethod
    def of(cls, tokenizer: Any) -> Marks:
        """From the tokenizer: every special token may end an answer but padding, BOS and unknown."""
        special = set(getattr(tokenizer, "all_special_ids", ()) or ())
        added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
        special |= {int(number) for number, token in added.items() if getattr(token, "special", False)}
        eos, bos = getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "bos_token_id", None)
        unknown = getattr(tokenizer, "unk_token_id", None)
        special -= {other for other in (unknown, bos) if other is not None and other != eos}
        begins = tokenizer("x")["input_ids"]
        return cls(frozenset(special), bos, int(bos is not None and bool(begins) and begins[0] == bos))


@dataclass(frozen=True)
class Counted:
    """Per-row numbers of one side."""

    names: Sequence[str]
    lengths: np.ndarray
    trained: np.ndarray
    last: np.ndarray
    """Id of the last trained token, -1 without any."""
    bos: np.ndarray
    """BOS tokens at the beginning of the row."""
    bos_inside: np.ndarray
    """BOS tokens after the beginning."""
    targets: bool
    """Rows carry a class or value instead of trained tokens."""
    cut: dict[str, int]
    dropped: list[dict[str, Any]]


def count(rows: Sequence[Row], marks: Marks) -> Counted:
    """One pass over the rows, a block at a time."""
    size = len(rows)
    parts = [_block(*_flat(rows, at, min(at + BLOCK, size)), marks) for at in range(0, size, BLOCK)]
    parts = parts or [(np.zeros(0, np.int64),) * 5]
    lengths, trained, last, bos, inside = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = getattr(rows, "names", None) or [row.id for row in rows]
    targets = size > 0 and rows[0].target is not None
    cut = dict(getattr(rows, "cut", {}) or {})
    dropped = list(getattr(rows, "dropped", ()))
    return Counted(names, lengths, trained, last, bos, inside, targets, cut, dropped)


def _flat(rows: Sequence[Row], start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, labels, bounds) of a run of rows; encoded rows already stand in flat arrays."""
    if isinstance(rows, EncodedRows):
        return rows.flat(start, stop)
    chosen = [rows[at] for at in range(start, stop)]
    edges = np.cumsum([0, *(len(row.input_ids) for row in chosen)])
    ids = np.concatenate([np.asarray(row.input_ids) for row in chosen])
    return ids, np.concatenate([np.asarray(row.labels) for row in chosen]), edges


def _block(ids: np.ndarray, labels: np.ndarray, bounds: np.ndarray, marks: Marks) -> tuple[np.ndarray, ...]:
    """(lengths, trained, last trained id, BOS at the beginning, BOS inside) of every row."""
    begin, end = bounds[:-1], bounds[1:]
    lengths = end - begin
    mask = labels != IGNORE
    mask[begin[lengths > 0]] = False
    trained = _within(mask, bounds)
    places = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1)) if len(mask) else np.zeros(0, np.int64)
    last = np.full(len(lengths), -1, np.int64)
    some = trained > 0
    last[some] = labels[places[end[some] - 1]]
    if marks.bos is None:
        return lengths, trained, last, np.zeros_like(lengths), np.zeros_like(lengths)
    others = np.append(np.flatnonzero(ids != marks.bos), len(ids))
    leading = np.minimum(others[np.searchsorted(others, begin)], end) - begin
    return lengths, trained, last, leading, _within(ids == marks.bos, bounds) - leading


def _within(mask: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """How many of each row are set."""
    total = np.concatenate([[0], np.cumsum(mask)])
    return total[bounds[1:]] - total[bounds[:-1]]


def summary(counted: Counted, marks: Marks, max_length: int) -> dict[str, Any]:
    """The numbers of one side for the manifest."""
    lengths, trained = counted.lengths, counted.trained
    missing = counted.cut.get("untrained", 0)
    left_out: dict[str, Any] = {
        "dropped": counted.cut.get("dropped", len(counted.dropped)) - missing,
        "cut": counted.cut,
        "without_trained": missing,
        "without_trained_rows": [item["row"] for item in counted.dropped if item.get("untrained")][:SHOWN],
    }
    if not len(lengths):
        return {"rows": 0, **left_out}
    facts: dict[str, Any] = {
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "trained_tokens": int(trained.sum()),
        "lengths": quantiles(lengths),
        "histogram": histogram(lengths),
        "fits": {str(size): round(float((lengths <= size).mean()), 4) for size in LENGTHS},
        "max_length": max_length,
        "at_max_length": int((lengths >= max_length).sum()),
        **left_out,
        "bos": {str(number): int((counted.bos == number).sum()) for number in np.unique(counted.bos).tolist()},
    }
    if counted.targets:
        return facts
    nothing = trained == 0
    ends = np.isin(counted.last, list(marks.stops))
    return facts | {
        "trained_per_row": quantiles(trained),
        "without_trained": missing + int(nothing.sum()),
        "without_trained_rows": (
            left_out["without_trained_rows"] + [counted.names[at] for at in np.flatnonzero(nothing)[:SHOWN].tolist()]
        )[:SHOWN],
        "stop_trained": int(ends.sum()),
        "stop_missing": int((~ends & ~nothing).sum()),
        "stop_not_trained_rows": [counted.names[at] for at in np.flatnonzero(~ends & ~nothing)[:SHOWN].tolist()],
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """min, median, mean, 95th percentile, max."""
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 1),
        "p95": float(np.percentile(values, 95)),
        "max": int(values.max()),
    }


def histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Rows by length in tokens, in bins that double: {"upto": 64, "rows": 12}."""
    edges = [16, 32, *LENGTHS]
    top = int(lengths.max())
    edges = [edge for edge in edges if edge < top] + [next((edge for edge in edges if edge >= top), top)]
    places = np.searchsorted(edges, lengths)
    return [{"upto": edge, "rows": int((places == at).sum())} for at, edge in enumerate(edges)]


def mapping(rows: Mapping[str, Sequence[Row]], marks: Marks) -> dict[str, Counted]:
    """Every side counted."""
    return {name: count(part, marks) for name, part in rows.items()}
