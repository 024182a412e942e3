"""Fingerprints: short, stable names for the content of files, folders and settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def of_file(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def of_value(value: Any) -> str:
    """sha256 of any JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


def of_folder(folder: Path, patterns: tuple[str, ...] = ("*",)) -> dict[str, str]:
    """relative name → sha256 for the matching files directly in `folder`, sorted."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.name: of_file(path) for path in sorted(files)}
