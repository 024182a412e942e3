"""Ship or not: a pure function over what was measured. `luthier verdict` gives its answer to CI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARGIN = 0.05
"""Largest relative rise of the loss on a guard set that is accepted, with its whole interval."""


def verdict(
    metrics: Mapping[str, Any],
    health: Mapping[str, Any],
    guards: Mapping[str, Mapping[str, Any]] | None = None,
    recorded: Mapping[str, str] | None = None,
    now: Mapping[str, str] | None = None,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """{"ship": bool, "reasons": [...], "evidence": {...}}. `reasons` says what speaks against it, or what it rests on.

    The paired interval of the task metric must lie above zero and above the instrument's noise floor; no guard may
    fall below its margin; health must not have failed; `now` (hashes of recipe, data, base, adapter) must equal what
    was `recorded` when the evidence was made.
    """
    against = stale(recorded or {}, now or {})
    gain, found = improvement(metrics)
    against += gain
    if health.get("verdict") not in ("ok", "warn"):
        failed = [one["name"] for one in health.get("diagnoses", ()) if one.get("status") == "fail"]
        against.append(f"health: {', '.join(failed) or health.get('verdict', 'was not measured')}")
    for name, guard in (guards or {}).items():
        against += _guard(name, guard, margin)
    reasons = against or [f"{found['metric']} improves by {found['low']:.4g} to {found['high']:.4g}"]
    evidence = {"task": found, "health": health.get("verdict"), "guards": dict(guards or {}), "hashes": dict(now or {})}
    return {"ship": not against, "reasons": reasons, "evidence": evidence}


def stale(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What changed since the evidence was made; evidence without hashes is accepted only where none are asked for."""
    return [
        f"stale evidence: {name} was {str(recorded.get(name, 'not recorded'))[:12]}, is now {str(value)[:12]}"
        for name, value in sorted(now.items())
        if recorded.get(name) != value
    ]


def improvement(metrics: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(what speaks against a gain, {"metric", "low", "high", "noise_floor"}) with larger numbers for better."""
    name = str(metrics.get("primary") or "loss")
    difference = (metrics.get("difference") or {}).get(name)
    if not difference or None in difference.get("ci95", (None,)):
        return [f"no paired interval of {name}"], {"metric": name, "low": None, "high": None}
    better = (metrics.get("directions") or {}).get(name, name not in ("loss", "perplexity", "mse", "ece"))
    ends = [float(end) if better else -float(end) for end in difference["ci95"]]
    low, high = min(ends), max(ends)
    floor = float((metrics.get("noise_floor") or {}).get(name) or 0.0)
    found = {"metric": name, "low": low, "high": high, "noise_floor": floor, "rows": metrics.get("rows")}
    if better is None:
        return [f"{name} has no better side"], found
    if low <= 0:
        return [f"the interval of {name} ({low:.4g} to {high:.4g}, better is larger) does not lie above zero"], found
    if low <= floor:
        return [f"the gain in {name} ({low:.4g} at least) is not above the noise floor {floor:.4g}"], found
    return [], found


def _guard(name: str, guard: Mapping[str, Any], margin: float) -> list[str]:
    base, ends = guard.get("base"), guard.get("ci95")
    if not base or not ends or ends[1] is None:
        return [f"guard {name}: was not measured"]
    worst = float(ends[1]) / float(base)
    if worst <= float(guard.get("margin", margin)):
        return []
    return [f"guard {name}: the loss may rise by {worst:.1%}, more than {float(guard.get('margin', margin)):.0%}"]
