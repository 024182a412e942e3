"""Files of the user that add members to families (`plugins:` of a recipe). They run with the user's rights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from luthier.core.errors import LuthierError, RecipeError


def load_plugin(path: Path) -> None:
    """Import a user's file; its decorators register what it defines. Only ever called for `plugins:`."""
    spec = importlib.util.spec_from_file_location(f"luthier_plugin_{path.stem}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise RecipeError(f"plugin {path} is not a Python file", where="plugins")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except LuthierError:
        raise
    except Exception as error:
        raise RecipeError(f"the plugin cannot be imported: {error!r}", where=str(path)) from error
