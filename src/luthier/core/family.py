"""Families: every choice that a recipe makes by name, all registered in the same way.

A family is a package folder with one module per member; the module's name is the member's name, the first
line of its docstring is its one-line description (read without importing it). The module registers a class
(with an inner `Params`) or a plain function: `@METHODS.register("lora")`. Other packages add members through
entry points in the group `luthier.<family>`; a recipe adds files through `plugins:`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.core.errors import RecipeError
from luthier.core.settings import problems_of, suggest


class Family:
    """A registry of members that a recipe names."""

    def __init__(self, name: str, package: str):
        self.name, self.package = name, package
        self._members: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator: make the class or function known under `name` (also as its attribute `name`)."""

        def note(member: Any) -> Any:
            if not member.__module__.startswith(self.package) and name in self._files():
                raise RecipeError(f"luthier has a {self.name} {name!r} of its own", remedy="take another name")
            member.name = name
            self._members[name] = member
            return member

        return note

    def _files(self) -> dict[str, Path]:
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        files = (path for folder in folders for path in sorted(Path(folder).glob("*.py")))
        return {p.stem: p for p in files if p.stem[0] != "_" and ".register(" in p.read_text("utf-8")}

    def names(self) -> list[str]:
        """All member names, sorted, without importing any built-in member."""
        outside = {point.name for point in entry_points(group=f"luthier.{self.name}")}
        return sorted({*self._members, *self._files(), *outside})

    def summaries(self) -> dict[str, str]:
        """name → first line of the docstring, again without imports for built-in members."""
        files = self._files()
        docs = {name: ast.get_docstring(ast.parse(path.read_text("utf-8"))) for name, path in files.items()}
        docs |= {name: member.__doc__ for name, member in self._members.items() if name not in docs}
        return {name: (docs.get(name) or "").strip().split("\n")[0] for name in self.names()}

    def get(self, name: str) -> Any:
        """The member, imported on first use. RecipeError with a suggestion for an unknown name."""
        if name not in self._members and name in self._files():
            importlib.import_module(f"{self.package}.{name}")
        for point in entry_points(group=f"luthier.{self.name}") if name not in self._members else ():
            if point.name == name:
                try:
                    self._members.setdefault(name, point.load())
                except Exception as error:
                    raise RecipeError(f"{self.name} {name!r} of {point.value} does not load: {error!r}") from error
        if name not in self._members:
            raise RecipeError(f"no {self.name} member is called {name!r}", remedy=suggest(name, self.names()))
        return self._members[name]

    def parse(self, spec: str | Mapping[str, Any]) -> Any:
        """`lora` or `{name: lora, r: 16}` → the member built with validated Params."""
        given = {"name": spec} if isinstance(spec, str) else dict(spec)
        member = self.get(str(given.pop("name", "")))
        try:
            return member(member.Params(**given))
        except ValidationError as error:
            found = problems_of(error, list(member.Params.model_fields), member.name)
            raise RecipeError(f"{self.name} {member.name}", problems=found) from None
