"""What luthier.json of an adapter folder may say: it decides template, task, window and base before anything loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import ModelError

_KINDS: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "method": (dict,),
    "peft_type": (str,),
    "task": (str, dict),
    "template": (str, dict),
    "labels": (list,),
    "problem": (str,),
    "max_length": (int,),
    "base": (dict,),
    "context": (dict,),
    "stop_ids": (list,),
    "virtual_tokens": (int,),
}
WINDOW_KEYS = frozenset(["rope_parameters", "max_position_embeddings", "n_positions"])
"""The only keys of a base's config that a window plan changes."""
MOST_LENGTH = 1 << 27
MOST_LABELS = 1 << 20


def check(card: Mapping[str, Any], file: Path) -> None:
    """ModelError for a field of another kind than the loader expects."""
    for key, kinds in _KINDS.items():
        value = card.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise _wrong(file, key, value)
    for key in ("method", "task", "template"):
        spec = card.get(key)
        if isinstance(spec, dict) and not isinstance(spec.get("name"), str):
            raise _wrong(file, f"{key}.name", spec.get("name"))
    labels = card.get("labels") or []
    if len(labels) > MOST_LABELS or not all(isinstance(label, str) for label in labels):
        raise _wrong(file, "labels", labels)
    if not 1 <= card.get("max_length", 1) <= MOST_LENGTH:
        raise _wrong(file, "max_length", card["max_length"])
    base = card.get("base") or {}
    if not isinstance(base.get("path", ""), str) or not isinstance(base.get("fingerprint", {}), dict):
        raise _wrong(file, "base", base)
    _window(card.get("context") or {}, file)


def template_of(card: Mapping[str, Any]) -> str:
    """Jinja source that the card brings along, or nothing."""
    spec = card.get("template")
    source = spec.get("source") if isinstance(spec, dict) else None
    return source if isinstance(source, str) else ""


def _window(plan: Mapping[str, Any], file: Path) -> None:
    """A plan changes the base's config: its positions, and nothing else."""
    if not plan:
        return
    for key in ("method", "family"):
        if not isinstance(plan.get(key), str):
            raise _wrong(file, f"context.{key}", plan.get(key))
    changes = plan.get("config")
    if not isinstance(changes, dict) or not set(changes) <= WINDOW_KEYS:
        raise _wrong(file, "context.config", changes)
    for key in ("from", "to"):
        if type(plan.get(key)) is not int or not 1 <= plan[key] <= MOST_LENGTH:
            raise _wrong(file, f"context.{key}", plan.get(key))
    resize = plan.get("resize")
    if resize is not None and not (isinstance(resize, dict) and 1 <= int(resize.get("length", 0)) <= MOST_LENGTH):
        raise _wrong(file, "context.resize", resize)


def _wrong(file: Path, key: str, value: Any) -> ModelError:
    return ModelError(
        f"{file.name}: {key} is {str(value)[:80]!r}", where=str(file), remedy="take the adapter again, or remove it"
    )
