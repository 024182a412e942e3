"""YaRN: interpolation by parts of the spectrum, and a temperature on the attention (Peng et al. 2023, 2309.00071).

cos and sin are multiplied by 0.1·ln s + 1. `beta_fast` is fitted to small windows (see `fitting_beta_fast`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from luthier.context import CONTEXTS
from luthier.context.plan import fitting_beta_fast, require, rope_plan, window_of
from luthier.core.settings import Settings


@CONTEXTS.register("yarn")
class Yarn:
    """By-parts with temperature."""

    class Params(Settings):
        """Target window and the ends of the ramp, in turns within the old window."""

        length: int = Field(gt=1)
        """Tokens."""
        beta_fast: float | None = Field(None, gt=0)
        """Dimensions that turn more often than this stay as they are; null fits it to the window."""
        beta_slow: float = Field(1.0, gt=0)
        """Dimensions that turn less often are interpolated fully."""

        @model_validator(mode="after")
        def _ordered(self) -> Yarn.Params:
            if self.beta_fast is not None and self.beta_fast <= self.beta_slow:
                raise ValueError("beta_fast must be above beta_slow")
            return self

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        factor = require(window, "rope", "yarn", self.params.length)
        fast = self.params.beta_fast or fitting_beta_fast(window)
        changed = {"rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": self.params.beta_slow}
        return rope_plan("yarn", window, self.params.length, changed)
