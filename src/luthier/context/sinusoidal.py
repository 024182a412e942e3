"""Sinusoidal positions need no table: any length is computed; only training tells whether it is understood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from luthier.context import CONTEXTS
from luthier.core.errors import RecipeError
from luthier.core.settings import Settings


@CONTEXTS.register("sinusoidal")
class Sinusoidal:
    """A larger max_position_embeddings for architectures that compute their positions."""

    class Params(Settings):
        """Target window."""

        length: int = Field(gt=1)
        """Tokens."""

    def __init__(self, params: Params):
        self.params = params

    def plan(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The plan for this config; only XGLM- and M2M-type decoders compute their positions."""
        kind = str(config.get("model_type"))
        if kind not in ("xglm", "m2m_100", "speech_to_text"):
            raise RecipeError(f"{kind} does not compute sinusoidal positions", where="context.name")
        old = int(config["max_position_embeddings"])
        if self.params.length <= old:
            raise RecipeError(f"the target {self.params.length} is not longer than {old}", where="context.length")
        return {
            "method": "sinusoidal",
            "family": "sinusoidal",
            "from": old,
            "to": self.params.length,
            "factor": self.params.length / old,
            "config": {"max_position_embeddings": self.params.length},
            "resize": None,
            "frequencies": "",
            "inside": "equal",
            "warnings": ["positions beyond the old window were never trained"],
        }
