"""What every exporter gets, and how an export is published: staged, certified, renamed; or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core import atomic
from luthier.core.errors import GateFailed, ModelError

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.core.types import Example, Row

CERTIFICATE = "certificate.json"


@dataclass
class Export:
    """The model, held-out rows for the parity check, and the facts that the model card tells."""

    adapted: AdaptedModel
    rows: Sequence[Row]
    dtype: str = "float32"
    facts: Mapping[str, Any] = field(default_factory=dict)
    """metrics, health, data manifest, recipe of the run, where there is one."""
    examples: Sequence[Example] = ()
    """The held-out examples, for prompts that are compared id by id."""
    trained_on: Mapping[str, Any] | None = None
    """Of a run on a quantised base whose export is made on the unquantised one: what training saw, in figures."""


def publish(target: Path, fill: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """`fill` writes the folder and returns its certificate; it appears under `target` only if that passed.

    GateFailed when the certificate says `"passed": false`; ModelError when `target` exists and is not empty.
    """
    from luthier.export.fold import hashes

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is not empty", where=str(target), remedy="name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.publish_folder(target) as staged:
        certificate = dict(fill(staged))
        if not certificate.get("passed", False):
            raise GateFailed(
                "the exported model is not the trained one: " + str(certificate.get("reason", "")),
                where=str(target),
                remedy="export with dtype float32, or keep serving the adapter itself",
            )
        certificate["files"] = hashes(staged)
        text = json.dumps(certificate, indent=2, ensure_ascii=False, allow_nan=False)
        (staged / CERTIFICATE).write_text(text + "\n", "utf-8")
    return certificate


def identity(export: Export, kind: str) -> dict[str, Any]:
    """What a certificate says about where the artefact came from. `adapters`: what must not be merged in again."""
    from luthier.export.fold import adapter_digest, merged_before

    seen = {"trained_on": dict(export.trained_on)} if export.trained_on else {}
    return {
        "kind": kind,
        "base": export.adapted.base.fingerprint,
        "method": export.adapted.method,
        "adapters": [*merged_before(export.adapted.base.path), adapter_digest(export.adapted)],
        "versions": {name: version(name) for name in ("luthier", "torch", "transformers")},
        **seen,
    }
