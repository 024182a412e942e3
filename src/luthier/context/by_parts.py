"""NTK-by-parts: fast dimensions stay, slow ones are interpolated, a ramp between; YaRN without its temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from luthier.context import CONTEXTS
from luthier.context.plan import fitting_beta_fast, require, rope_plan, window_of
from luthier.core.settings import Settings


@CONTEXTS.register("by_parts")
class ByParts:
    """By-parts, attention factor 1."""

    class Params(Settings):
        """Target window and the ends of the ramp, in turns within the old window."""

        length: int = Field(gt=1)
        """Tokens."""
        beta_fast: float | None = Field(None, gt=0)
        """null fits it to the window."""
        beta_slow: float = Field(1.0, gt=0)

        @model_validator(mode="after")
        def _ordered(self) -> ByParts.Params:
            if self.beta_fast is not None and self.beta_fast <= self.beta_slow:
                raise ValueError("beta_fast must be above beta_slow")
            return self

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        factor = require(window, "rope", "by_parts", self.params.length)
        changed = {
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": 1.0,
            "beta_slow": self.params.beta_slow,
            "beta_fast": self.params.beta_fast or fitting_beta_fast(window),
        }
        return rope_plan("by_parts", window, self.params.length, changed)
