"""luthier tunes language models, and proves what it did. Public names are loaded on first use (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Recipe": "luthier.recipe",
    "run": "luthier.pipeline",
    "check": "luthier.pipeline",
    "load": "luthier.adapted",
    "AdaptedModel": "luthier.adapted",
    "CannotMerge": "luthier.core.errors",
    "LuthierError": "luthier.core.errors",
    "RunDir": "luthier.core.rundir",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
