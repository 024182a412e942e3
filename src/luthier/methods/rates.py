"""Learning rates that know the model: wide models want smaller steps than narrow ones."""

from __future__ import annotations

REFERENCE = 2048
"""Hidden size at which a member's default rate holds unchanged."""


def for_width(rate: float, hidden_size: int, power: float = 0.5, low: float = 1e-6, high: float = 3e-3) -> float:
    """`rate` · (2048 / hidden)^power, within [low, high].

    power 0.5 fits LoRA (its best rate falls slowly with width), 1.0 fits full tuning (the maximal-update rule).
    """
    return float(min(high, max(low, rate * (REFERENCE / hidden_size) ** power)))
