"""Learning rates that know the model: wide models want smaller steps than narrow ones."""

from __future__ import annotations

REFERENCE = 2048
"""Hidden size at which a member's default rate holds unchanged."""

ENCODERS = 1.75
"""How much more LoRA and bottlenecks take on encoders: they begin with a new head, and a classifier's few hundred steps
are short. On held-out rows of sib200 (99, two seeds) with all-MiniLM-L6-v2 and 132 steps LoRA reached a loss of 1.22 at
5e-4, .66 at 2e-3 and .72 at 5e-3; a bottleneck .72 at 2.3e-3 and .54 at 4e-3."""


def for_width(rate: float, hidden_size: int, power: float = 0.5, low: float = 1e-6, high: float = 3e-3) -> float:
    """`rate` · (2048 / hidden)^power, within [low, high].

    power 0.5 fits LoRA (its best rate falls slowly with width), 1.0 fits full tuning (the maximal-update rule).
    """
    return float(min(high, max(low, rate * (REFERENCE / hidden_size) ** power)))
