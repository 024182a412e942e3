"""The training rows over time, and the rows behind each loss spike, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.report.collect import Facts, number

KINDS = ("never_learned", "forgotten", "memorised")
ORDER = ("learned", *KINDS, "seen_once")
MOST = 5
"""Rows of a kind, and of a spike, that the page lists."""


def counts(metrics: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(kind, rows) of every kind that there is."""
    found = _part(metrics, "counts")
    known = {kind: number(found.get(kind)) for kind in ORDER} if isinstance(found, Mapping) else {}
    return [(kind, int(count)) for kind, count in known.items() if count]


def rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(kind, [{"where", "text", "first", "lowest", "last"}]) of the kinds that deserve a look."""
    made = []
    for kind in KINDS:
        listed = [one for one in _list(_part(metrics, kind)) if isinstance(one, Mapping)][:MOST]
        if listed:
            made.append((kind, [_row(one) for one in listed]))
    return made


def spikes(facts: Facts) -> list[dict[str, Any]]:
    """[{"step", "loss", "rows": [text]}]: as the finished run recorded them, with file and line; else as they came."""
    recorded = [one for one in _list(_part(facts.metrics, "spikes")) if isinstance(one, Mapping)]
    made = []
    for one in recorded or facts.spikes:
        named = [
            row.get("source") or row.get("id") if isinstance(row, Mapping) else row for row in _list(one.get("rows"))
        ]
        made.append({"step": one.get("step"), "loss": number(one.get("loss")), "rows": named[:MOST]})
    return made


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: number(one.get(name)) for name in ("first", "lowest", "last")}
    return {"where": one.get("source") or one.get("id"), "text": one.get("text") or "", **numbers}


def _part(metrics: Mapping[str, Any], name: str) -> Any:
    found = metrics.get("training_rows")
    return found.get(name) if isinstance(found, Mapping) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
