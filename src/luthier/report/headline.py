"""Was it worth it? Pure functions from metrics.json to a verdict that a page can put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from luthier.report.collect import number

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "mse", "ece", "repetition"})
ORDER = {
    "classify": ("f1_macro", "accuracy", "mcc", "spearman", "mse", "loss"),
    "instruct": ("loss", "rougeL", "exact_match", "token_accuracy"),
    "language_model": ("loss", "token_accuracy"),
}
"""Which metric stands in the headline, by task: the first one that was measured."""
CHANCE = 0.05
"""Largest p of a difference that is called one."""
FEW_ROWS = 30
"""Below this number of rows a headline says so."""


@dataclass(frozen=True)
class Headline:
    """`answer` is better | worse | unclear | unmeasured."""

    answer: str
    metric: str | None = None
    base: float | None = None
    tuned: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    noise_floor: float | None = None
    detectable: float | None = None
    """The smallest true difference that this many rows can show."""
    rows: int | None = None
    few_rows: bool = False
    unconfirmed: bool = False
    """The interval leaves out zero, the permutation test does not: too few independent rows."""

    def as_json(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def main_metric(metrics: Mapping[str, Any], task: str) -> str | None:
    """The metric of the headline: named by the measurement itself, else the first of the task's order that has
    an interval, else the first that was measured at all."""
    base, tuned = metrics.get("base") or {}, metrics.get("tuned") or {}
    order = (metrics.get("primary"), *ORDER.get(task, ()), "loss", *tuned)
    names = [name for name in order if name and number(base.get(name)) is not None]
    measured = [str(name) for name in names if number(tuned.get(name)) is not None]
    differences = metrics.get("difference") or {}
    sure = [name for name in measured if interval(differences.get(name) or {})[0] is not None]
    return next(iter([*sure, *measured]), None)


def judge(metrics: Mapping[str, Any], task: str) -> Headline:
    """Better or worse only where the paired 95 % interval leaves out zero and the instrument's noise floor, and the
    permutation test agrees: of two documents a bootstrap knows nothing."""
    name = main_metric(metrics, task)
    if name is None:
        return Headline("unmeasured")
    base, tuned = float(metrics["base"][name]), float(metrics["tuned"][name])
    difference = (metrics.get("difference") or {}).get(name) or {}
    low, high = interval(difference)
    value = number(difference.get("value"))
    value = tuned - base if value is None else value
    floor = noise_floor(metrics, name)
    rows = number(metrics.get("rows"))
    answer = "unclear"
    beyond = low is not None and high is not None and (low > floor or high < -floor)
    confirmed = significant(difference, floor)
    if confirmed:
        answer = side(metrics, name, value)
    return Headline(
        answer,
        name,
        base,
        tuned,
        value,
        low,
        high,
        number(difference.get("p")),
        floor or None,
        number(difference.get("detectable")),
        int(rows) if rows is not None else None,
        rows is not None and rows < FEW_ROWS,
        beyond and not confirmed,
    )


def side(metrics: Mapping[str, Any], name: str, difference: float) -> str:
    """better | worse, by the direction that the measurement names; unclear for a metric without a better side."""
    higher = (metrics.get("directions") or {}).get(name, name not in LOWER_IS_BETTER)
    return "unclear" if higher is None else "better" if (difference > 0) == bool(higher) else "worse"


def interval(difference: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The two ends of `ci95`, or (None, None)."""
    ends = difference.get("ci95")
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None, None
    low, high = number(ends[0]), number(ends[1])
    return (low, high) if low is not None and high is not None else (None, None)


def noise_floor(metrics: Mapping[str, Any], name: str) -> float:
    """How far the base differs from itself when scored twice; 0 where it was not measured."""
    floor = metrics.get("noise_floor")
    found = floor.get(name) if isinstance(floor, Mapping) else floor
    return abs(number(found) or 0.0)


def significant(difference: Mapping[str, Any], floor: float = 0.0) -> bool:
    """Whether the interval leaves out zero and the noise floor, and the permutation test (where made) agrees."""
    low, high = interval(difference)
    chance = number(difference.get("p"))
    if low is None or high is None or (chance is not None and chance > CHANCE):
        return False
    return low > floor or high < -floor
