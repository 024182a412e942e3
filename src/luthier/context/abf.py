"""Adjusted base frequency: a chosen larger RoPE base, then training (Xiong et al. 2023, arXiv:2309.16039)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from luthier.context import CONTEXTS
from luthier.context.plan import require, rope_plan, window_of
from luthier.core.errors import RecipeError
from luthier.core.settings import Settings


@CONTEXTS.register("abf")
class Abf:
    """A new base; needs tuning."""

    class Params(Settings):
        """Target window and base."""

        length: int = Field(gt=1)
        """Tokens."""
        base: float = Field(500_000.0, gt=1)
        """The new rope_theta."""

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        require(window, "rope", "abf", self.params.length)
        if self.params.base <= window.theta:
            raise RecipeError(
                f"the new base {self.params.base:g} is not above the model's own {window.theta:g}",
                where="context.base",
                remedy=f"a base above {window.theta:g}, or another method",
            )
        return rope_plan(
            "abf",
            window,
            self.params.length,
            {"rope_type": "default", "rope_theta": self.params.base},
            ("a changed base needs training",),
        )
