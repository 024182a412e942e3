"""Overfitting, memorising, underfitting, noise: a verdict with its reason and the advice that fits. Pure functions.

The curve's own verdict is `report.overfitting.judge` (it never fires on a falling loss). Where the validation losses
of single rows were kept over time, a paired bootstrap over rows decides whether the rise is more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from luthier.metrics import METRICS
from luthier.metrics.resample import paired
from luthier.report.overfitting import Curve, judge

RowHistory = Sequence[tuple[int, np.ndarray, np.ndarray]]
"""(step, [n] summed validation losses, [n] supervised units), in the order of steps."""

ADVICE = {
    "overfit": "stop at step {since} (early stopping keeps it); more data, augmentation, dropout, a lower rank",
    "memorising": "training rows are known by heart: stop at step {since}, fewer epochs, more or augmented data",
    "underfit": "the loss was still falling: train longer, or raise the learning rate",
    "noisy": "the curve's wobble is larger than its trend: a larger validation set, or a lower learning rate",
    "diverging": "the training loss rose too: lower the learning rate, clip gradients, add warm-up",
    "healthy": "",
    "unknown": "validate at least three times (train.evaluate_every)",
}


@dataclass(frozen=True)
class Diagnosis:
    """`since` is the step of the best validation loss; `band` the 95 % interval of last − best, by row."""

    verdict: str
    reason: str
    advice: str
    since: int | None = None
    band: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def diagnose(train: Curve, validation: Curve, rows: RowHistory = (), seed: int = 0) -> Diagnosis:
    """healthy | underfit | overfit | memorising | noisy | diverging | unknown."""
    found = judge(train, validation)
    verdict, band = found.verdict, rise(rows, seed)
    if verdict in ("overfit", "memorising", "diverging") and band is not None and band[0] <= 0:
        verdict = "noisy"
    reason = _reason(verdict, found.best, found.last, found.since, band)
    return Diagnosis(verdict, reason, ADVICE[verdict].format(since=found.since), found.since, band)


def rise(rows: RowHistory, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of (last − best) validation loss, paired by row; None without histories."""
    if len(rows) < 2:
        return None
    best = min(rows, key=lambda item: float(item[1].sum() / max(1.0, item[2].sum())))
    loss = METRICS.get("loss")
    first, last = (loss(np.stack([t, t], axis=1), n) for _, t, n in (best, rows[-1]))
    ends = paired(first, last, 1000, seed)["ci95"]
    return float(ends[0]), float(ends[1])


def _reason(
    verdict: str, best: float | None, last: float | None, since: int | None, band: tuple[float, float] | None
) -> str:
    if best is None or last is None:
        return "too few validations"
    said = (
        f"validation loss {best:.4g} at step {since}, {last:.4g} at the end"
        if since is not None
        else f"best {best:.4g}, last {last:.4g}"
    )
    chance = f"; by row the rise is {band[0]:+.3g} to {band[1]:+.3g}" if band else ""
    return f"{verdict}: {said}{chance}"


def memorisation(train: np.ndarray, twins: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Training rows against held-out twins that say the same in other words, paired: mean losses [n] each.

    {"gap", "ci95", "p", "memorised"}: rows are known by heart where the twins are surely harder.
    """
    from luthier.metrics.scored import mean

    found = paired(mean(train), mean(twins), 1000, seed)
    return {"gap": found["value"], "ci95": found["ci95"], "p": found["p"], "memorised": found["ci95"][0] > 0}


def exposure(canary: float, controls: Sequence[float]) -> float:
    """Exposure of a planted canary in bits (Carlini et al. 2019): log2(all candidates) − log2(the canary's rank).

    0 to log2(controls + 1); a canary that was never trained on has 1 on average or less.
    """
    rank = 1 + sum(loss <= canary for loss in controls)
    return math.log2(len(controls) + 1) - math.log2(rank)


def between(validation: Curve, first: int, last: int, tolerance: float = 0.01) -> dict[str, Any]:
    """Two checkpoints of one run (7 and 21, say): improving | converged | overfit, with the minimum between them."""
    known = {step: loss for step, loss in validation if first <= step <= last}
    if first not in known or last not in known:
        return {"verdict": "unknown", "reason": f"no validation at step {first if first not in known else last}"}
    best = min(known, key=lambda step: known[step])
    change = (known[last] - known[first]) / max(1e-12, known[first])
    risen = (known[last] - known[best]) / max(1e-12, known[best])
    verdict = "overfit" if risen > 3 * tolerance else "improving" if change < -tolerance else "converged"
    reason = (
        f"loss {known[first]:.4g} at step {first}, {known[last]:.4g} at step {last}, lowest {known[best]:.4g} at {best}"
    )
    return {"verdict": verdict, "reason": reason, "best": best, "change": change}


def from_events(events: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(training curve, validation curve) of a run's log; a step that was logged twice counts once."""
    curves = []
    for kind in ("train", "validate"):
        found = {
            int(e["step"]): float(e["loss"]) for e in events if e.get("kind") == kind and e.get("loss") is not None
        }
        curves.append(sorted(found.items()))
    return curves[0], curves[1]
