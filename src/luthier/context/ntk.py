"""NTK-aware scaling: a larger RoPE base, so that the lowest frequency is interpolated and the highest untouched.

b' = b · s^(d/(d-2)); the lowest frequency becomes exactly θ/s. transformers has no type for it: the base is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from luthier.context import CONTEXTS
from luthier.context.plan import require, rope_plan, window_of
from luthier.core.errors import RecipeError
from luthier.core.settings import Settings


@CONTEXTS.register("ntk")
class Ntk:
    """Static NTK-aware base."""

    class Params(Settings):
        """Target window."""

        length: int = Field(gt=1)
        """Tokens."""

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        factor = require(window, "rope", "ntk", self.params.length)
        if window.dim <= 2:
            raise RecipeError("ntk needs more than one frequency", where="context.name", remedy="name: linear")
        base = window.theta * factor ** (window.dim / (window.dim - 2))
        return rope_plan("ntk", window, self.params.length, {"rope_type": "default", "rope_theta": base})
