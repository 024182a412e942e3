"""Early stopping as a pure function over the history of a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.train.settings import EarlyStopSettings

HIGHER_IS_BETTER = frozenset({"accuracy", "token_accuracy", "f1_macro", "f1_weighted", "mcc", "exact_match"})


@dataclass(frozen=True)
class Judgement:
    """Index of the best evaluation, whether to stop, and why."""

    best: int
    stop: bool
    reason: str


def judge(values: Sequence[float], settings: EarlyStopSettings | None, metric: str = "loss") -> Judgement:
    """The best value is simply the lowest (highest for accuracies), the earlier one of equals. Patience is counted
    from the last value that improved on its predecessor in rank by `min_delta`.

    `values` is the metric at each evaluation, oldest first, and must not be empty.
    """
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    delta = settings.min_delta if settings else 0.0
    best = mark = 0
    for index, value in enumerate(values):
        if sign * value < sign * values[best]:
            best = index
        if sign * value < sign * values[mark] - delta:
            mark = index
    since = len(values) - 1 - mark
    if settings is None or since < settings.patience:
        return Judgement(best, False, "")
    reason = f"{metric} did not improve by {delta:g} in {since} evaluations (best {values[best]:.4f})"
    return Judgement(best, True, reason)
