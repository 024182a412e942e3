"""The one call behind `luthier export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.export import EXPORTERS
from luthier.export.base import Export, publish

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.core.types import Row


def export(
    adapted: AdaptedModel,
    rows: Sequence[Row],
    target: Path,
    kind: str | Mapping[str, Any],
    dtype: str = "float32",
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `target` as `kind` and return its certificate. Raises before anything is published."""
    exporter = EXPORTERS.parse(kind)
    return publish(Path(target), lambda folder: exporter.fill(Export(adapted, rows, dtype, facts or {}), folder))
