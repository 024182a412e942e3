"""What a run says about memorising, as the page shows it; and the verdict that the run itself recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.report.collect import number
from luthier.report.headline import interval

VERDICTS = ("healthy", "underfit", "overfit", "memorising", "noisy", "diverging", "unknown")
PROBES = ("canaries", "held_out")
MOST_CANARIES = 8
"""Canaries that are listed, the most exposed first."""


def recorded(judged: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of the curves, replaced by the one in metrics.json where there is one.

    The run itself knows more than its curves: the losses of single validation rows, and what the kept weights remember.
    `curve` stays the verdict of the curves, `by` is curve | canaries | held_out.
    """
    made = {**judged, "curve": judged.get("verdict"), "band": None, "by": "curve"}
    found = metrics.get("overfitting")
    if not isinstance(found, Mapping) or found.get("verdict") not in VERDICTS:
        return made
    since = number(found.get("since"))
    low, high = interval({"ci95": found.get("band")})
    made |= {"verdict": found["verdict"], "since": None if since is None else int(since)}
    made |= {"band": None if low is None else [low, high], "by": "curve"}
    if found.get("by") in PROBES and found["verdict"] == "memorising":
        made["by"] = found["by"]
    return made


def key(over: Mapping[str, Any]) -> str:
    """Which texts say this verdict: those of the curve, of a probe, or of a rise that is chance by row."""
    if over.get("by") in PROBES:
        return str(over["by"])
    rows = over["verdict"] == "noisy" and over.get("curve") not in (None, "noisy") and over.get("band")
    return "noisy_rows" if rows else str(over["verdict"])


def shown(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """{"held_out": …, "canaries": …}: what was measured, numbers only; empty where nothing was."""
    found = metrics.get("memorisation")
    found = found if isinstance(found, Mapping) else {}
    parts = {"held_out": _held_out(found.get("held_out")), "canaries": _canaries(found.get("canaries"))}
    return {name: part for name, part in parts.items() if part}


def _inner(values: Mapping[str, Any], *names: str) -> float | None:
    found: Any = values
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return number(found)


def _held_out(values: Any) -> dict[str, Any] | None:
    if not isinstance(values, Mapping) or _inner(values, "tuned", "held_out") is None:
        return None
    low, high = interval(values)
    sides = {side: [_inner(values, side, part) for part in ("training", "held_out")] for side in ("base", "tuned")}
    rows = [_inner(values, "rows", part) for part in ("training", "held_out")]
    facts = {"split": values.get("split"), "own_file": values.get("same_source") is False}
    return {**sides, **facts, "rows": rows, "gap": number(values.get("gap")), "low": low, "high": high}


def _canaries(values: Any) -> dict[str, Any] | None:
    if not isinstance(values, Mapping) or _inner(values, "tuned", "exposure") is None:
        return None
    names = ("planted", "controls", "most_bits", "chance", "p", "by_heart", "first_choice", "control_loss", "gap")
    low, high = interval(values)
    listed = values.get("each")
    each = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    each.sort(key=lambda one: (-(number(one.get("exposure")) or 0.0), number(one.get("loss")) or 0.0))
    return {
        **{name: number(values.get(name)) for name in names},
        **{"low": low, "high": high, "base": _inner(values, "base", "exposure")},
        "tuned": _inner(values, "tuned", "exposure"),
        "each": [
            {name: number(one.get(name)) for name in ("base_loss", "loss", "exposure")} | {"text": one.get("text")}
            for one in each[:MOST_CANARIES]
        ],
    }
