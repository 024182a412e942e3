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

from luthier.core.seeding import generator
from luthier.report.overfitting import MEMORISED, Curve, judge

RowHistory = Sequence[tuple[int, np.ndarray, np.ndarray]]
"""(step, [n] summed validation losses, [n] supervised units), in the order of steps."""

Sides = tuple[np.ndarray, np.ndarray]
"""[n] mean losses of single rows: of the base, of the tuned model."""

BY_HEART = 0.1
"""Nats a token: a gap between trained and held-out rows below this is no memorising, whatever the ratio."""
LEAST = 8
"""Rows (documents) of each side below which no gap is called memorising."""
CHANCE = math.log2(math.e)
"""Mean exposure in bits of a canary that was never trained, of many controls (its rank is uniform)."""

ADVICE = {
    "overfit": "stop at step {since} (early stopping keeps it); more data, augmentation, dropout, a lower rank",
    "memorising": "training rows are known by heart: stop at step {since}, fewer epochs, more or augmented data",
    "by heart": "fewer epochs, a lower rank, more or augmented data; take what must not be repeated out of the rows",
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
    by: str = "curve"
    """What tells it: the curve, or what was measured of the model that is kept (canaries | held_out)."""

    def as_json(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def diagnose(
    train: Curve,
    validation: Curve,
    rows: RowHistory = (),
    seed: int = 0,
    memory: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """healthy | underfit | overfit | memorising | noisy | diverging | unknown.

    `memory` is what `memorisation.measure` found. Canaries known by heart are memorising whatever the curve does; the
    gap to held-out rows counts only where the validation loss does not fall to the end.
    """
    found = judge(train, validation)
    verdict, band = found.verdict, rise(rows, seed)
    if verdict in ("overfit", "memorising", "diverging") and band is not None and band[0] <= 0:
        verdict = "noisy"
    reason = _reason(verdict, found.best, found.last, found.since, band)
    if by := _by_heart(validation, memory or {}):
        since = found.since if verdict in ("overfit", "memorising") else None
        said = f"memorising: {_said(by, (memory or {})[by])}; the curve: {reason}"
        return Diagnosis("memorising", said, ADVICE["by heart"], since, band, by)
    return Diagnosis(verdict, reason, ADVICE[verdict].format(since=found.since), found.since, band)


def _by_heart(validation: Curve, memory: Mapping[str, Any]) -> str | None:
    """Which probe shows that rows are known by heart: canaries | held_out, or None."""
    if (memory.get("canaries") or {}).get("memorised"):
        return "canaries"
    falls = len(validation) > 1 and validation[-1][1] <= min(loss for _, loss in validation)
    return "held_out" if (memory.get("held_out") or {}).get("memorised") and not falls else None


def _said(by: str, found: Mapping[str, Any]) -> str:
    if by == "canaries":
        exposed = f"exposure {found['tuned']['exposure']:.2f} of {found['most_bits']:.2f} bits"
        return f"{found['by_heart']} of {found['planted']} canaries are known by heart ({exposed})"
    losses = found["tuned"]
    return f"loss {losses['training']:.3g} on trained rows, {losses['held_out']:.3g} on held-out rows of the same kind"


def rise(rows: RowHistory, seed: int = 0, resamples: int = 1000) -> tuple[float, float] | None:
    """95 % interval of (last − best) validation loss over bootstrapped rows; None without histories.

    The lowest of many wobbling points is low by luck. So each resample names its best step on the rows that it drew,
    and the rise from there is measured on those that it did not draw.
    """
    if len(rows) < 2 or len(rows[0][1]) < 2:
        return None
    total, units = (np.stack([part[at] for part in rows]) for at in (1, 2))  # [steps, rows]
    count = total.shape[1]
    drawn = generator(seed, "rise", count).multinomial(count, np.full(count, 1 / count), size=resamples)
    inside = (drawn @ total.T) / np.maximum(drawn @ units.T, 1e-9)  # [resamples, steps]
    left = (drawn == 0).astype(float)
    outside = (left @ total.T) / np.maximum(left @ units.T, 1e-9)
    rises = outside[:, -1] - np.take_along_axis(outside, inside.argmin(axis=1)[:, None], axis=1)[:, 0]
    low, high = np.quantile(rises[left.sum(axis=1) > 0], [0.025, 0.975])
    return float(low), float(high)


def histories(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """validation_rows.jsonl as a RowHistory; a step that was logged twice counts once, other rows do not count."""
    found = {int(one["step"]): (np.array(one["loss"], float), np.array(one["units"], float)) for one in records}
    sizes = {len(loss) for loss, _ in found.values()}
    return [(step, *found[step]) for step in sorted(found)] if len(sizes) == 1 else []


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


def memorisation(train: Sides, held_out: Sides, seed: int = 0) -> dict[str, Any]:
    """Trained rows against rows of the same kind that were never trained: mean loss of each row, base and tuned.

    `gap` is how much more the training helped the trained rows, (tuned − base) of the held-out rows minus that of the
    trained ones, so that rows which are easy anyway do not count; `ci95` draws the rows of both sides again. Every
    training leaves some gap: `memorised` is only said where its low end is above BY_HEART, the trained rows keep less
    than MEMORISED of the loss of the held-out ones, and there are LEAST rows of each.
    """
    learnt, transferred = train[1] - train[0], held_out[1] - held_out[0]
    found = apart(learnt, transferred, seed)
    means = [[float(part.mean()) if len(part) else 0.0 for part in side] for side in (train, held_out)]
    made = {side: {"training": means[0][at], "held_out": means[1][at]} for at, side in enumerate(("base", "tuned"))}
    known = found["ci95"] is not None and found["ci95"][0] > BY_HEART and means[0][1] < MEMORISED * means[1][1]
    known = known and min(len(learnt), len(transferred)) >= LEAST
    return {"rows": {"training": len(learnt), "held_out": len(transferred)}, **made, **found, "memorised": known}


def apart(first: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Mean(other) − mean(first) of unpaired numbers: {"gap", "ci95"} by bootstrap over both; null where too few."""
    if len(first) < 2 or len(other) < 2:
        return {"gap": float(other.mean() - first.mean()) if len(first) and len(other) else None, "ci95": None}
    source = generator(seed, "apart", len(first), len(other))
    drawn = [part[source.integers(0, len(part), (1000, len(part)))].mean(axis=1) for part in (first, other)]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    return {"gap": float(other.mean() - first.mean()), "ci95": [float(low), float(high)]}


def exposure(canary: float, controls: Sequence[float]) -> float:
    """Exposure of a planted canary in bits (Carlini et al. 2019): log2(all candidates) − log2(the canary's rank).

    0 to log2(controls + 1); a canary that was never trained on has CHANCE bits on average.
    """
    rank = 1 + sum(loss <= canary for loss in controls)
    return math.log2(len(controls) + 1) - math.log2(rank)


def exposures(planted: Sides, controls: Sides, seed: int = 0) -> dict[str, Any]:
    """Canaries against their controls, mean loss of each row of base and tuned model.

    `exposure` is the mean over canaries, before and after; `p` the chance that as many rows of the pool, planted or
    not, have an exposure as high (permutation test). A canary `by_heart` is likelier than every control and keeps less
    than MEMORISED of their median loss.
    """
    bits = [[exposure(loss, controls[at].tolist()) for loss in planted[at].tolist()] for at in (0, 1)]
    usual = float(np.median(controls[1])) if len(controls[1]) else 0.0
    by_heart = [
        bool(loss < controls[1].min(initial=math.inf) and loss < MEMORISED * usual) for loss in planted[1].tolist()
    ]
    count, most = len(by_heart), math.log2(len(controls[1]) + 1)
    each = [
        {
            "base_loss": before,
            "loss": after,
            "exposure": bits[1][i],
            "base_exposure": bits[0][i],
            "by_heart": by_heart[i],
        }
        for i, (before, after) in enumerate(zip(*(part.tolist() for part in planted), strict=True))
    ]
    made = {side: {"exposure": float(np.mean(bits[at]))} for at, side in enumerate(("base", "tuned"))}
    found = {"planted": count, "controls": len(controls[1]), "most_bits": most, "chance": CHANCE, **made}
    found |= apart(planted[1] - planted[0], controls[1] - controls[0], seed)
    found |= {"p": _by_chance(planted[1], controls[1], float(np.sum(bits[1])), seed), "by_heart": sum(by_heart)}
    return {**found, "control_loss": usual, "memorised": any(by_heart), "each": each}


def _by_chance(planted: np.ndarray, controls: np.ndarray, total: float, seed: int, draws: int = 2000) -> float:
    """Share of draws of as many rows from the pool whose ranks among the rest are as exposed."""
    pool, count = np.concatenate([planted, controls]), len(planted)
    source, beyond = generator(seed, "exposure", count, len(controls)), 0
    for _ in range(draws):
        order = source.permutation(len(pool))
        chosen, rest = pool[order[:count]], np.sort(pool[order[count:]])
        ranks = 1 + np.searchsorted(rest, chosen, side="right")
        beyond += float((math.log2(len(rest) + 1) - np.log2(ranks)).sum()) >= total - 1e-9
    return (beyond + 1) / (draws + 1)


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
