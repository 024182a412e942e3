"""No extension, only the limit raised: RoPE runs on beyond its window as it is. The control for every other method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from luthier.context import CONTEXTS
from luthier.context.plan import require, window_of
from luthier.core.fingerprint import of_value
from luthier.core.settings import Settings


@CONTEXTS.register("extrapolate")
class Extrapolate:
    """Unchanged frequencies at untrained positions."""

    class Params(Settings):
        """Target window."""

        length: int = Field(gt=1)
        """Tokens."""

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config; `control` says that no effect is expected of it."""
        window = window_of(config)
        factor = require(window, "rope", "extrapolate", self.params.length)
        return {
            "method": "extrapolate",
            "family": "rope",
            "from": window.length,
            "to": self.params.length,
            "factor": factor,
            "config": {"max_position_embeddings": self.params.length},
            "resize": None,
            "frequencies": of_value([dict(window.rope or {}), window.dim]),
            "inside": "equal",
            "control": True,
            "warnings": ["the positions are not extended; this is a control"],
        }
