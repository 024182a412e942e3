"""Model names → what is served under them. Reading is a lookup; loading happens outside of the model thread."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, ModelError
from luthier.models.base import Base
from luthier.serve import attention
from luthier.serve.adapters import Served, new, open_adapter, tasks_of
from luthier.serve.schema import ApiError


class Registry:
    """The base and its adapters by name."""

    def __init__(self, base: Base, base_name: str, roots: tuple[Path, ...] = (), implementation: str = attention.NAME):
        self.base, self.base_name, self.implementation = base, base_name, implementation
        self.roots = tuple(root.resolve() for root in roots)
        self.created = int(time.time())
        self.template: Any = None
        """How the base is asked: like the first adapter, so that both can be compared."""
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

    def load(self, name: str, folder: Path) -> list[str]:
        """Open and publish; an old adapter of that name goes on serving its running requests.

        A library of prefixes becomes one model for each task, NAME:TASK. Returns the model names.
        """
        if name == self.base_name:
            raise ModelError(f"{name!r} is the name of the base", where=str(folder), remedy="--base-name, or NAME=RUN")
        with self._lock:
            served = _opened(name, folder, self.base, self.implementation)
            made = {name: served}
            if tasks := tasks_of(served):
                made = {f"{name}:{task}": replace(served, task=at, version=new()) for at, task in enumerate(tasks)}
            self._served = {**self._without(name), **made}
            if self.template is None and served.adapted is not None and not served.adapted.task.has_head:
                self.template = served.adapted.template
        return list(made)

    def _without(self, name: str) -> dict[str, Served]:
        return {
            key: value
            for key, value in self._served.items()
            if key == self.base_name or (key != name and not key.startswith(f"{name}:"))
        }

    def load_under_roots(self, name: str, path: str) -> list[str]:
        """Like `load`, for paths that come over the network: plain names below a root, through no link."""
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\x00" in part or len(part) > 255 for part in parts):
            raise ApiError(400, "a path below the directories named at start, without . and ..", "invalid_path", "path")
        for root in self.roots:
            if _below(root, parts):
                try:
                    return self.load(name, root.joinpath(*parts))
                except LuthierError as error:
                    raise ApiError(400, f"the adapter was refused: {error.what}", "adapter_refused", "path") from None
        raise ApiError(404, "no such adapter under the directories named at start", "adapter_not_found", "path")

    def unload(self, name: str) -> None:
        """Take a name away; its running requests finish."""
        if name == self.base_name:
            raise ApiError(400, "the base cannot be unloaded", "invalid_name", "name")
        with self._lock:
            left = self._without(name)
            if len(left) == len(self._served):
                raise ApiError(404, f"the model {name!r} does not exist", "model_not_found", "name")
            self._served = left


def _opened(name: str, folder: Path, base: Base, implementation: str) -> Served:
    """Past the gate, and with a clear word for whatever the gate does not know."""
    try:
        return open_adapter(name, folder, base, implementation)
    except (LuthierError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{name} cannot be loaded ({type(error).__name__})", where=str(folder)) from None


def _below(root: Path, parts: list[str]) -> bool:
    """Whether each part is a folder, not a link: nothing outside of the root is even looked at."""
    place = root
    for part in parts:
        place = place / part
        try:
            if place.is_symlink() or not place.is_dir():
                return False
        except (OSError, ValueError):
            return False
    return not (place / "adapter").is_symlink()
