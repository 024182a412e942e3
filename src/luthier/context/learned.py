"""Learned position tables (GPT-2, OPT, BERT, RoBERTa): a longer table made from the old one.

tile repeats E[p mod L0], interpolate resamples with both ends kept (align_corners), random draws rows with the
trained rows' own standard deviation. With tile and random the old positions stay equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from luthier.context import CONTEXTS
from luthier.context.plan import LEARNED, RESERVED_ROWS, require, window_of
from luthier.core.fingerprint import of_value
from luthier.core.settings import Settings


@CONTEXTS.register("learned")
class Learned:
    """A resized table."""

    class Params(Settings):
        """Target window and how rows are made."""

        length: int = Field(gt=1)
        """Tokens."""
        how: Literal["interpolate", "tile", "random"] = "tile"

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        factor = require(window, "learned", "learned", self.params.length)
        resize = {"length": self.params.length, "how": self.params.how}
        return {
            "method": "learned",
            "family": "learned",
            "from": window.length,
            "to": self.params.length,
            "factor": factor,
            "resize": resize,
            "frequencies": of_value(resize),
            "inside": "changed" if self.params.how == "interpolate" else "equal",
            "warnings": [],
            "config": {LEARNED[window.model_type]: self.params.length + RESERVED_ROWS.get(window.model_type, 0)},
        }
