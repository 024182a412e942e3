"""Dynamic NTK: the base grows with the current length; inside the old window nothing changes, to the bit.

transformers takes the original length from `max_position_embeddings`, so that must stay L0: raised to the target,
the method is silently without effect up to the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from luthier.context import CONTEXTS
from luthier.context.plan import require, rope_plan, window_of
from luthier.core.settings import Settings


@CONTEXTS.register("dynamic")
class Dynamic:
    """NTK base as a function of the length seen."""

    class Params(Settings):
        """Target window."""

        length: int = Field(gt=1)
        """Tokens."""

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config."""
        window = window_of(config)
        factor = require(window, "rope", "dynamic", self.params.length)
        changed = {"rope_type": "dynamic", "factor": factor}
        told = ("frequencies follow the longest row of a batch: a shorter row beside it is rotated as that one is",)
        return rope_plan("dynamic", window, self.params.length, changed, told, keep_length=True)
