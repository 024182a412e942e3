"""General text that the tuned model must not forget: its loss before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.errors import DataError
from luthier.core.types import Row
from luthier.evaluate.losses import row_losses
from luthier.metrics import METRICS
from luthier.metrics.resample import group_indices, paired

MOST_ROWS = 400
"""Windows of a guard file that are measured, evenly drawn."""


def guard(
    adapted: Any, rows: Sequence[Row], *, batch_tokens: int = 8192, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """{"rows", "base", "tuned", "value", "ci95", "p", "detectable"}: losses and their paired difference by document."""
    loss = METRICS.get("loss")

    def scored() -> Any:
        found = row_losses(adapted, rows, batch_tokens)
        return loss(np.stack([found.total, found.right], axis=1), found.count)

    tuned = scored()
    with adapted.off():
        base = scored()
    documents = group_indices([row.id.rpartition("#")[0] or row.id for row in rows])
    return {"base": base.value, "tuned": tuned.value, **paired(base, tuned, resamples, seed, documents)}


def rows_of(file: str | Path, adapted: Any) -> list[Row]:
    """Windows of a file of plain text, every token supervised. DataError where the file has no text."""
    from luthier.data import encode
    from luthier.data import load as loading
    from luthier.data.settings import DataSettings
    from luthier.data.templates import TEMPLATES

    settings = DataSettings.model_validate({"train": str(file), "max_length": adapted.max_length, "cache": False})
    loaded = loading.load(settings, "language_model")
    tokenizer, stop = adapted.base.tokenizer, adapted.base.stop_ids[0]
    template = TEMPLATES.parse("plain")
    options: dict[str, Any] = {"labels": None, "stop_id": stop, "cache": None}
    made = encode.encode(loaded.examples, template, tokenizer, settings, "language_model", **options)
    if not len(made):
        raise DataError(f"{file} has no text to guard", where="evaluate.guard", remedy="name a text file")
    places = np.unique(np.linspace(0, len(made) - 1, min(MOST_ROWS, len(made))).astype(int))
    return [made[index] for index in places.tolist()]


def measure(
    adapted: Any, files: Sequence[str], *, batch_tokens: int, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """file name → guard; with several prefixes, `file name:task` → guard, for each of them may have forgotten.

    Models with a row head have no token losses and are not guarded.
    """
    if adapted.task.has_head:
        return {}
    options = {"batch_tokens": batch_tokens, "resamples": resamples, "seed": seed}
    found = {}
    for file in files:
        rows, name = rows_of(file, adapted), Path(file).name
        for index, task in enumerate(adapted.tasks or ("",)):
            mine = [replace(row, task=index) for row in rows]
            found[f"{name}:{task}" if len(adapted.tasks) > 1 else name] = guard(adapted, mine, **options)
    return found
