"""What every exporter gets, and how an export is published: staged, certified, renamed; or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core import atomic
from luthier.core.errors import GateFailed, ModelError

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.core.types import Row

CERTIFICATE = "certificate.json"


@dataclass
class Export:
    """The model, held-out rows for the parity check, and the facts that the model card tells."""

    adapted: AdaptedModel
    rows: Sequence[Row]
    dtype: str = "float32"
    facts: Mapping[str, Any] = field(default_factory=dict)
    """metrics, health, data manifest, recipe of the run, where there is one."""


def publish(target: Path, fill: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """`fill` writes the folder and returns its certificate; it appears under `target` only if that passed.

    GateFailed when the certificate says `"passed": false`; ModelError when `target` exists and is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise ModelError(f"{target} is not empty", where=str(target), remedy="name a new folder")
    with atomic.publish_folder(target) as staged:
        certificate = dict(fill(staged))
        if not certificate.get("passed", False):
            raise GateFailed(
                "the exported model is not the trained one: " + str(certificate.get("reason", "")),
                where=str(target),
                remedy="export with dtype float32, or keep serving the adapter itself",
            )
        (staged / CERTIFICATE).write_text(json.dumps(certificate, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return certificate
