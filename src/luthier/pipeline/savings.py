"""What shared prefixes and the frozen-trunk cache would save in this very run: for `luthier check`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from luthier.core.errors import ModelError
from luthier.core.types import Row
from luthier.engine.sharing import share

GROUPS = 20
"""Optimizer steps of the first epoch that are looked at."""


def savings(adapted: Any, plan: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """{"shared_prefix": …, "trunk_cache": …}, whether switched on or not."""
    return {"shared_prefix": sharing(adapted, plan), "trunk_cache": trunk(adapted, rows)}


def sharing(adapted: Any, plan: Any) -> dict[str, Any]:
    """Share of the tokens that need no computing, since another row of the batch begins with them."""
    if adapted.base.kind != "decoder":
        return {"on": False, "saves": 0.0, "why": "an encoder's tokens see what comes after them"}
    if adapted.layout != "flat":
        return {"on": False, "saves": 0.0, "why": "the layout is padded"}
    whole = computed = 0
    for group in islice(plan.groups(0), GROUPS):
        for batch in group:
            made = share(batch)
            whole += len(batch.input_ids)
            computed += len(batch.input_ids if made is None else made.input_ids)
    return {"on": adapted.base.shared_prefix, "saves": round(1 - computed / max(1, whole), 3)}


def trunk(adapted: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Layers below the lowest trained one, and the disk that keeping their states takes; or why there are none."""
    from luthier.models import trunk as cache

    try:
        first = cache.frozen_layers(adapted, [rows[index] for index in range(min(3, len(rows)))])
    except ModelError as error:
        return {"applies": False, "why": error.what}
    megabytes = round(cache.needed_bytes(adapted, rows) / 1e6, 1)
    return {"applies": True, "layers": first, "of": len(adapted.base.anatomy.layers), "disk_mb": megabytes}
