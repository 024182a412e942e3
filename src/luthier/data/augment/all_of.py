"""Several augmenters, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from luthier.core.settings import Settings
from luthier.data.augment import AUGMENTERS


@AUGMENTERS.register("all_of")
class AllOf:
    """Several augmenters, one after the other."""

    class Params(Settings):
        """Which."""

        parts: list[str | dict[str, Any]] = Field(min_length=1)
        """Augmenters, as in the recipe."""
        ratio: float = Field(1.0, gt=0, le=10)
        """New rows for each training row."""

    def __init__(self, params: Params):
        self.params = params
        self.parts = [AUGMENTERS.parse(part) for part in params.parts]

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """A changed text, or None."""
        changed: str | None = None
        for part in self.parts:
            changed = part.change(changed or text, source) or changed
        return changed
