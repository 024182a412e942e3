"""The data sets that ship with luthier: `data.train: builtin` or `builtin:NAME`. No torch here: only where they are."""

from __future__ import annotations

import difflib
from pathlib import Path

from luthier.core.errors import DataError

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every built-in data set."""
    return sorted(file.stem for file in _FOLDER.glob("*.jsonl"))


def path(name: str) -> Path:
    """The JSON-lines file of a data set. DataError for an unknown name."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        remedy = f"did you mean builtin:{near[0]}?" if near else f"one of: {', '.join(known)}"
        raise DataError(f"there is no built-in data set {name!r}", where="data.train", remedy=remedy)
    return _FOLDER / f"{name}.jsonl"
