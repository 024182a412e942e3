"""What the tokens say: trained tokens, stop tokens, BOS, lengths. Counted on the very rows that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.core.types import IGNORE, Row

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHOWN = 20


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

    names: list[str]
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
    """One pass over the rows."""
    size = len(rows)
    lengths, trained = np.zeros(size, np.int32), np.zeros(size, np.int32)
    last = np.full(size, -1, np.int64)
    bos, inside = np.zeros(size, np.int32), np.zeros(size, np.int32)
    names: list[str] = []
    for at in range(size):
        row = rows[at]
        names.append(row.id)
        lengths[at] = len(row.input_ids)
        places = np.flatnonzero(row.labels[1:] != IGNORE)
        trained[at] = len(places)
        if len(places):
            last[at] = row.labels[1:][places[-1]]
        if marks.bos is not None:
            found = np.flatnonzero(row.input_ids == marks.bos)
            leading = int((found == np.arange(len(found))).sum())
            bos[at], inside[at] = leading, len(found) - leading
    targets = size > 0 and rows[0].target is not None
    cut = dict(getattr(rows, "cut", {}) or {})
    return Counted(names, lengths, trained, last, bos, inside, targets, cut, list(getattr(rows, "dropped", ())))


def summary(counted: Counted, marks: Marks, max_length: int) -> dict[str, Any]:
    """The numbers of one side for the manifest."""
    lengths, trained = counted.lengths, counted.trained
    if not len(lengths):
        return {"rows": 0, "dropped": len(counted.dropped), "cut": counted.cut}
    facts: dict[str, Any] = {
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "trained_tokens": int(trained.sum()),
        "lengths": quantiles(lengths),
        "histogram": histogram(lengths),
        "fits": {str(size): round(float((lengths <= size).mean()), 4) for size in LENGTHS},
        "max_length": max_length,
        "at_max_length": int((lengths >= max_length).sum()),
        "cut": counted.cut,
        "dropped": len(counted.dropped),
        "bos": {str(number): int((counted.bos == number).sum()) for number in np.unique(counted.bos).tolist()},
    }
    if counted.targets:
        return facts
    nothing = trained == 0
    ends = np.isin(counted.last, list(marks.stops))
    return facts | {
        "trained_per_row": quantiles(trained),
        "without_trained": int(nothing.sum()),
        "without_trained_rows": [counted.names[at] for at in np.flatnonzero(nothing)[:SHOWN].tolist()],
        "stop_trained": int(ends.sum()),
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
