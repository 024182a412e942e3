"""From raw seconds to rates, paired ratios, and what may be said of them. Pure."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.bench.arms import KINDS, TRL

AGREE = 0.02
"""How far the loss after the epoch may be from luthier's, as a share of what the epoch gained."""
AGREE_HALF = 0.15
ROUNDING = 2e-6
"""And besides, relative to the loss."""
ABOUT = ("shape", "count", "tokens", "supervised", "rows_per_step", "lr", "data", "prefix", "shared", "device", "dtype")

Records = Mapping[str, Sequence[Mapping[str, Any]]]


def disagreeing(losses: Mapping[str, float], start: float, half: bool = False) -> dict[str, str]:
    """Exact arms that took the same rows in the same steps and did not end at the same loss, with the reason."""
    own = losses["luthier"]
    allowed = (AGREE_HALF if half else AGREE) * abs(start - own) + ROUNDING * abs(own)
    found = {}
    for name, loss in losses.items():
        kind = KINDS[name]
        same = kind.objective == "answers" and kind.in_order and not kind.lossy
        if same and not abs(loss - own) <= allowed:
            found[name] = f"its loss after the epoch is {loss:.6f}, luthier's {own:.6f} (from {start:.6f})"
    if {"luthier_top", "luthier_trunk_cache"} <= losses.keys():
        one, other = losses["luthier_top"], losses["luthier_trunk_cache"]
        if not abs(one - other) <= AGREE * abs(start - one) + ROUNDING * abs(one):
            found["luthier_trunk_cache"] = f"its loss after the epoch is {other:.6f}, uncached {one:.6f}"
    return found


def summary(
    work: Mapping[str, Any],
    speeds: Sequence[float],
    records: Records,
    losses: Mapping[str, float],
    start: float,
    **more: Any,
) -> dict[str, Any]:
    """Rates and paired ratios: each ratio is taken inside a round, then median and range over the rounds.

    On a CPU the clock is the arm's own CPU-seconds, on a GPU the wall. `more` is put beside them as it is; of it
    `checks` and `versions` are by arm.
    """
    clock = "cpu_s" if work.get("device", "cpu") == "cpu" else "wall_s"
    by_arm = {key: more.pop(key, {}) for key in ("checks", "versions")}
    arms = []
    for name, found in records.items():
        one = _arm(name, work, speeds, found, clock)
        one["loss"] = losses[name]
        one["check"], one["versions"] = (by_arm[key].get(name) for key in ("checks", "versions"))
        arms.append(one)
    ratios = {
        f"luthier/{name}": ratio(records["luthier"], found, clock)
        for name, found in records.items()
        if name != "luthier"
    }
    if {"luthier_top", "luthier_trunk_cache"} <= records.keys():
        pair = (records["luthier_trunk_cache"], records["luthier_top"])
        ratios["luthier_trunk_cache/luthier_top"] = ratio(*pair, clock)
    trl = [arm for arm in arms if arm["name"] in TRL]
    if trl:
        rate = "tokens_per_cpu_s" if clock == "cpu_s" else "tokens_per_s"
        best = max(trl, key=lambda arm: arm[rate])["name"]
        ratios["luthier/trl_best"] = {**ratios[f"luthier/{best}"], "arm": best}
    return {
        "gemm_gflops": round(statistics.median(speeds), 1),
        "clock": clock,
        "work": {**{key: work[key] for key in ABOUT if key in work}, "loss_before": start},
        "arms": arms,
        "ratios": ratios,
        "rounds": len(speeds),
        **more,
        "machine": machine(),
    }


def _arm(
    name: str, work: Mapping[str, Any], speeds: Sequence[float], found: Sequence[Mapping[str, Any]], clock: str
) -> dict[str, Any]:
    """Medians, ranges, and the raw lists. MFU is of the whole training's products: none where a part is not done."""
    tokens = work["tokens"]
    rates = [tokens / one["cpu_s"] for one in found]
    shares = [work["flops"] / one[clock] / 1e9 / speed for one, speed in zip(found, speeds, strict=True)]
    whole = KINDS[name].objective != "top"
    made = {
        "name": name,
        "tokens_per_cpu_s": round(statistics.median(rates), 1),
        "tokens_per_cpu_s_range": [round(min(rates), 1), round(max(rates), 1)],
        "tokens_per_s": round(statistics.median(tokens / one["wall_s"] for one in found), 1),
        "mfu": round(statistics.median(shares), 3) if whole else None,
        "peak_rss_mb": round(max(one["peak_rss_mb"] for one in found), 1),
        "computed_positions": found[-1]["slots"],
        "cpu_s": [round(one["cpu_s"], 4) for one in found],
        "wall_s": [round(one["wall_s"], 4) for one in found],
    }
    if clock == "wall_s":
        made["peak_cuda_mb"] = round(max(one["peak_cuda_mb"] for one in found), 1)
    return made


def ratio(
    mine: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], clock: str = "cpu_s"
) -> dict[str, Any]:
    """How many times fewer seconds; `clear` where two rounds or more were made and their range does not hold 1."""
    each = [theirs[clock] / ours[clock] for ours, theirs in zip(mine, other, strict=True)]
    low, high = min(each), max(each)
    found = {"median": round(statistics.median(each), 3), "range": [round(low, 3), round(high, 3)]}
    return {**found, "clear": bool(len(each) > 1 and (low > 1 or high < 1))}


def told(found: Mapping[str, Any]) -> str:
    """A ratio in words: named only where it is clear."""
    low, high = found["range"]
    spread = f"({low:.2f}–{high:.2f})"
    if not found["clear"]:
        return f"no difference shown {spread}"
    if high < 1:
        return f"{1 / found['median']:.2f} x slower {spread}"
    return f"{found['median']:.2f} x faster {spread}"


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions."""
    import platform
    from importlib.metadata import version

    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line] \
        if cpuinfo.is_file() else []  # fmt: skip
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": load(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]
