"""The base class of every settings model: frozen, strict about keys, docstrings become help."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.core.errors import Problem


class Settings(BaseModel):
    """Immutable settings; the string literal under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def suggest(name: str, known: Sequence[str]) -> str:
    """The known name that was probably meant, else all of them."""
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def problems_of(error: ValidationError, known: Sequence[str], where: str) -> list[Problem]:
    """What pydantic found, in words; `known` are the keys that exist under `where`."""
    found = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        unknown = item["type"] == "extra_forbidden"
        what = f"unknown key {key!r}" if unknown else item["msg"].removeprefix("Value error, ")
        found.append(Problem(what, where=f"{where}.{key}", remedy=suggest(key, known) if unknown else ""))
    return found
