"""Files of the user that add members to families (`plugins:` of a recipe). They run with the user's rights."""

from __future__ import annotations

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path

from luthier.core.errors import LuthierError, RecipeError


def load_plugin(path: Path) -> None:
    """Import a user's file; its decorators register what it defines. Only ever called for `plugins:`."""
    name = f"luthier_plugin_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise RecipeError(f"plugin {path} is not a Python file", where="plugins", remedy="name a .py file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pydantic look their annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        if isinstance(error, LuthierError) or not isinstance(error, Exception | SystemExit):
            raise
        raise RecipeError(f"the plugin cannot be imported: {error!r}", where=str(path)) from error
