"""Formats that are a flat row of named columns: which column plays which role, decided once a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from luthier.core.errors import DataError
from luthier.core.settings import Settings
from luthier.core.types import Example
from luthier.data.formats.fields import Fields


class Flat:
    """Base of the flat formats. A role is found by the first of its aliases; the role's own name comes first."""

    name: ClassVar[str]
    covers: ClassVar[frozenset[str]] = frozenset()
    aliases: ClassVar[Mapping[str, tuple[str, ...]]]
    required: ClassVar[tuple[str, ...]]

    class Params(Settings):
        """No settings."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def fits(self, keys: frozenset[str], row: Mapping[str, Any]) -> bool:
        """Whether every required role has a column."""
        columns = self.resolve(keys, strict=False)
        return all(role in columns for role in self.required)

    def resolve(self, keys: frozenset[str], strict: bool = True) -> dict[str, str]:
        """role → column. With `strict`, two columns that could both play a required role are an error."""
        lower: dict[str, str] = {}
        for key in sorted(keys):
            lower.setdefault(key.strip().lower(), key)
        found: dict[str, str] = {}
        for role, names in self.aliases.items():
            there = [lower[name] for name in (role, *names) if name in lower and lower[name] not in found.values()]
            if there and there[0].strip().lower() != role and len(there) > 1 and strict and role in self.required:
                raise DataError(
                    f"{there[0]!r} and {there[1]!r} could both be the {role}",
                    remedy=f"say which: data.columns: {{{role}: {there[0]}}}",
                )
            if there:
                found[role] = there[0]
        return found

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """The row as Examples."""
        raise AssertionError("a format defines examples()")  # pragma: no cover
