"""The one call behind `luthier export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.export import EXPORTERS
from luthier.export.base import Export, identity, publish
from luthier.methods.targets import packing

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
    """Write `target` as `kind` and return its certificate. Raises before anything is published.

    Of a run on a quantised base everything but the adapter itself is made, and certified, on the unquantised base.
    """
    exporter = EXPORTERS.parse(kind)
    wanted = Export(adapted, rows, dtype, facts or {}, examples)
    if exporter.name != "adapter" and packing(adapted.base) != "none":
        wanted = unquantised(wanted)
    return publish(Path(target), lambda folder: {**identity(wanted, exporter.name), **exporter.fill(wanted, folder)})


def unquantised(export: Export) -> Export:
    """The same adapter on the base in float32, with what that changes (`trained_on`): a figure, not a gate, for the
    adapter learned to make up for the rounding of the base that it saw."""
    from luthier.export.certificate import compare, logits_of_adapted
    from luthier.export.fold import float32_copy

    kind = packing(export.adapted.base)
    fresh = float32_copy(export.adapted)
    found = compare(logits_of_adapted(export.adapted), logits_of_adapted(fresh), export.rows, "float32")
    figures = ("rows", "positions", "max_logit_difference", "mean_logit_difference", "logit_size", "top1_agreement")
    seen: dict[str, Any] = {"quantize": kind, "merged_into": "the unquantised base"}
    seen["difference_to_the_quantised_model"] = {name: found[name] for name in figures if name in found}
    if "perplexity" in found:
        sides = found["perplexity"]
        seen["perplexity"] = {"quantised": sides["before"], "unquantised": sides["after"]}
    return dataclasses.replace(export, adapted=fresh, trained_on=seen)
