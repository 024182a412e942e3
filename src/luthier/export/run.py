"""The one call behind `luthier export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.export import EXPORTERS
from luthier.export.base import Export, identity, publish

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.core.types import Example, Row


def export(
    adapted: AdaptedModel,
    rows: Sequence[Row],
    target: Path,
    kind: str | Mapping[str, Any],
    dtype: str = "float32",
    facts: Mapping[str, Any] | None = None,
    examples: Sequence[Example] = (),
) -> dict[str, Any]:
    """Write `target` as `kind` and return its certificate. Raises before anything is published."""
    exporter = EXPORTERS.parse(kind)
    wanted = Export(adapted, rows, dtype, facts or {}, examples)
    return publish(Path(target), lambda folder: {**identity(wanted, exporter.name), **exporter.fill(wanted, folder)})
