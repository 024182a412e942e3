"""Llama 3.1's RoPE: long waves divided by the factor, short waves kept, a smooth passage between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from luthier.context import CONTEXTS
from luthier.context.plan import require, rope_plan, window_of
from luthier.core.settings import Settings


@CONTEXTS.register("llama3")
class Llama3:
    """λ > L0/low: /s; λ < L0/high: kept."""

    class Params(Settings):
        """Target window and the two wavelengths, as L0 / wavelength."""

        length: int = Field(gt=1)
        """Tokens."""
        low_freq_factor: float = Field(1.0, gt=0)
        high_freq_factor: float = Field(4.0, gt=0)

        @model_validator(mode="after")
        def _ordered(self) -> Llama3.Params:
            if self.low_freq_factor >= self.high_freq_factor:
                raise ValueError("low_freq_factor must be below high_freq_factor")
            return self

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        factor = require(window, "rope", "llama3", self.params.length)
        changed = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": self.params.low_freq_factor,
            "high_freq_factor": self.params.high_freq_factor,
        }
        return rope_plan("llama3", window, self.params.length, changed)
