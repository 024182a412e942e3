"""The adapter stands on another base than the one that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.health.diagnoses import DIAGNOSES
from luthier.health.finding import Finding


@DIAGNOSES.register("wrong_base")
def wrong_base(facts: Mapping[str, Any]) -> Finding | None:
    """Fingerprints of weights and tokenizer, as stored with the adapter and as loaded."""
    stored, loaded = facts.get("stored_fingerprint") or {}, facts.get("fingerprint") or {}
    if not stored or not loaded:
        return None
    other = [part for part in ("weights", "tokenizer") if stored.get(part) and stored[part] != loaded.get(part)]
    return Finding(
        "wrong_base",
        "fail" if other else "ok",
        float(len(other)),
        0.0,
        f"{' and '.join(other)} differ from those of the training"
        if other
        else "base and tokenizer are the trained ones",
        "load the base that luthier.json names" if other else "",
    )
