"""Validation: the loop's numbers, and the losses of single validation rows over time (validation_rows.jsonl)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.core.events import JsonLines

MOST = 2000
"""Rows whose losses are kept at every validation, evenly spread over all of them."""
DIGITS = 5


class Validation:
    """Measures when the loop asks; hears its `validate` event and then writes the rows down under that step."""

    def __init__(self, adapted: Any, rows: Sequence[Any], batch_tokens: int, log: JsonLines):
        self.adapted, self.rows, self.batch_tokens, self.log = adapted, rows, batch_tokens, log
        self.places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int))
        self.last: Any = None

    def __call__(self) -> Mapping[str, float]:
        """Loss, perplexity, accuracy over all validation rows."""
        from luthier.evaluate.losses import validation_loss

        self.adapted.eval()
        measured = validation_loss(self.adapted, self.rows, self.batch_tokens)
        self.last = measured["rows"]
        return {name: value for name, value in measured.items() if isinstance(value, int | float)}

    def listen(self, record: Mapping[str, Any]) -> None:
        """Summed loss and supervised units of each row. A probe's rounds, which do not validate, leave no line."""
        if record["kind"] == "validate" and self.last is not None:
            loss, units = (getattr(self.last, name)[self.places] for name in ("total", "count"))
            self.log({"step": record["step"], "loss": loss.round(DIGITS).tolist(), "units": units.tolist()})
            self.last = None
