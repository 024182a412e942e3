"""Does the training overfit? A pure function over the two curves.

A validation loss that falls is never called overfitting (the widespread test `loss[i] > loss[i+1]` has it the
wrong way round). A rise counts only when it is larger than the curve's own noise and 3 % of the best loss, and
when the training loss kept falling meanwhile: that is what tells overfitting from divergence.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

RISE = 0.03
"""Smallest relative rise over the best validation loss that counts."""
FLOOR = 0.01
"""Smallest absolute rise in nats that counts, whatever the relative one: tiny losses wobble."""
STILL_FALLING = 0.05
"""Fall over the last third of the validation curve, as a share of the loss and of all that was gained, above
which the training ended too early."""
MEMORISED = 0.25
"""A training loss under this share of the best validation loss means that rows are known by heart."""

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Overfitting:
    """The verdict with its numbers; `since` is the step of the best validation loss where it matters."""

    verdict: str
    """healthy | underfit | overfit | memorising | noisy | diverging | unknown"""
    since: int | None = None
    best: float | None = None
    last: float | None = None
    rise: float | None = None
    noise: float | None = None
    train_before: float | None = None
    train_after: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def judge(train: Curve, validation: Curve) -> Overfitting:
    """`train` and `validation` are (step, loss) in the order of steps."""
    if len(validation) < 3 or not train:
        return Overfitting("unknown")
    losses = [loss for _, loss in validation]
    place = min(range(len(losses)), key=losses.__getitem__)
    best, last, step = losses[place], losses[-1], validation[place][0]
    noise = _noise(losses)
    before, after = _level(train, step, before=True), _level(train, step, before=False)
    facts: dict[str, Any] = {"best": best, "last": last, "rise": last - best, "noise": noise}
    facts |= {"train_before": before, "train_after": after}
    if _risen(losses[place + 1 :]) - best > max(RISE * best, 2 * noise, FLOOR):
        if before is not None and after is not None and after > before * (1 + RISE):
            return Overfitting("diverging", step, **facts)
        by_heart = after is not None and after < MEMORISED * best
        return Overfitting("memorising" if by_heart else "overfit", step, **facts)
    gained = losses[0] - best
    if noise > max(gained / 2, FLOOR) and len(losses) >= 4:
        return Overfitting("noisy", None, **facts)
    third = losses[-max(1, len(losses) // 3) - 1]
    if place == len(losses) - 1 and third - last > max(STILL_FALLING * max(third, gained), 2 * noise, FLOOR):
        return Overfitting("underfit", None, **facts)
    return Overfitting("healthy", step, **facts)


def _risen(later: Sequence[float]) -> float:
    """How high the curve surely is after its minimum: the lower one of the last two points."""
    return min(later[-2:], default=float("-inf"))


def _noise(losses: Sequence[float]) -> float:
    """Standard deviation of the wobble: how far each point lies off the line through its neighbours.

    A curve that only falls or only rises has none, however bent it is."""
    rough = []
    for left, middle, right in zip(losses, losses[1:], losses[2:], strict=False):
        outside = max(0.0, middle - max(left, right), min(left, right) - middle)
        rough.append(outside)
    # a single turn (down, then up) is a minimum, not noise: the largest excursion is left out
    rough = sorted(rough)[:-1]
    return statistics.fmean(rough) if rough else 0.0


def _level(train: Curve, step: int, *, before: bool) -> float | None:
    """Median training loss shortly before `step`, or over the last tenth of the curve after it."""
    part = [loss for at, loss in train if (at <= step) == before]
    if not part:
        return None
    window = max(1, min(len(part), len(train) // 10 or 1))
    return statistics.median(part[-window:])
