"""LongRoPE: one divisor for each frequency, from lists that you bring (Ding et al. 2024, arXiv:2402.13753).

The search for the lists is not done here. cos and sin are scaled by sqrt(1 + ln s / ln L0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveFloat

from luthier.context import CONTEXTS
from luthier.context.plan import require, rope_plan, window_of
from luthier.core.errors import RecipeError
from luthier.core.settings import Settings


@CONTEXTS.register("longrope")
class LongRope:
    """θ_i / f_i with separate lists inside and beyond the old window."""

    class Params(Settings):
        """Target window and lists of head_dim / 2 divisors."""

        length: int = Field(gt=1)
        """Tokens."""
        short_factor: list[PositiveFloat]
        """Within the old window."""
        long_factor: list[PositiveFloat]
        """Beyond it."""

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        factor = require(window, "rope", "longrope", self.params.length)
        for key in ("short_factor", "long_factor"):
            if len(getattr(self.params, key)) != window.dim // 2:
                raise RecipeError(f"{key} needs {window.dim // 2} numbers", where=f"context.{key}")
        changed = {
            "rope_type": "longrope",
            "factor": factor,
            "short_factor": list(self.params.short_factor),
            "long_factor": list(self.params.long_factor),
        }
        return rope_plan("longrope", window, self.params.length, changed)
