"""Model names → what is served under them. Reading is a lookup; loading happens outside of the model thread."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.models.base import Base
from luthier.serve.adapters import Served, open_adapter
from luthier.serve.schema import ApiError


class Registry:
    """The base and its adapters by name."""

    def __init__(self, base: Base, base_name: str, roots: tuple[Path, ...] = ()):
        self.base, self.base_name = base, base_name
        self.roots = tuple(root.resolve() for root in roots)
        self.created = int(time.time())
        self._lock = threading.Lock()
        self._served: dict[str, Served] = {base_name: Served(base_name, None, base)}

    def get(self, name: str) -> Served:
        """404 in OpenAI's shape for an unknown name; never the base instead."""
        found = self._served.get(name)
        if found is None:
            raise ApiError(404, f"the model {name!r} does not exist", "model_not_found", "model")
        return found

    def names(self) -> list[str]:
        """All names, the base first."""
        return list(self._served)

    def describe(self) -> list[dict[str, Any]]:
        """/v1/models entries; no paths."""
        return [
            {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "luthier",
                **({"parent": self.base_name} if name != self.base_name else {}),
            }
            for name in self.names()
        ]

    def load(self, name: str, folder: Path) -> Served:
        """Open and publish; an old adapter of that name goes on serving its running requests."""
        if name == self.base_name:
            raise ApiError(400, "the base's name cannot be replaced", "invalid_name", "name")
        with self._lock:
            try:
                served = open_adapter(name, folder, self.base)
            except LuthierError as error:
                raise ApiError(400, f"the adapter was refused: {error.what}", "adapter_refused", "path") from None
            self._served = {**self._served, name: served}
        return served

    def load_under_roots(self, name: str, path: str) -> Served:
        """Like `load`, for paths that come over the network: only inside the roots, links resolved first."""
        if "\x00" in path:
            raise ApiError(400, "not a path", "invalid_path", "path")
        for root in self.roots:
            try:
                candidate = (root / path).resolve(strict=False)
            except (OSError, RuntimeError, ValueError):
                continue
            if candidate.is_relative_to(root) and candidate.is_dir():
                return self.load(name, candidate)
        raise ApiError(404, "no such adapter under the directories named at start", "adapter_not_found", "path")

    def unload(self, name: str) -> None:
        """Take a name away; its running requests finish."""
        if name == self.base_name:
            raise ApiError(400, "the base cannot be unloaded", "invalid_name", "name")
        self.get(name)
        with self._lock:
            self._served = {key: value for key, value in self._served.items() if key != name}
