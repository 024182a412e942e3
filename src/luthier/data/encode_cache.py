"""Encoded rows on disk: npy and Arrow files in a folder named by the hash of all that decides them, never pickle.

A folder appears whole or not at all. When it is read, every file must have the hash that was written down; then
the arrays are mapped, not loaded. Anything else counts as absent, and the rows are made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.core import atomic
from luthier.core.errors import OutOfResource
from luthier.core.fingerprint import of_file, of_value
from luthier.data.columns import Examples
from luthier.data.encoded import EncodedRows, Names
from luthier.data.settings import DataSettings

VERSION = 2
"""Of the encoding: raised when the same settings give other rows."""
ARRAYS = ("ids", "trained", "bounds", "targets", "tasks")
SETTINGS = {"max_length", "truncate", "stride", "loss_on"}


def through(folder: Path, name: str, make: Callable[[], EncodedRows]) -> EncodedRows:
    """The rows from the cache, or made and put there. A full disk costs the cache, not the rows."""
    place = folder / name
    found = load(place)
    if found is not None:
        return found
    made = make()
    with suppress(OutOfResource, OSError):
        store(place, made)
        return load(place) or made
    return made


def key(examples: Examples, template: Any, tokenizer: Any, settings: DataSettings, others: list[Any]) -> str:
    """Hash of rows, template, tokenizer and settings."""
    chosen = settings.model_dump(mode="json", include=SETTINGS)
    shape = [template.name, template.params.model_dump(mode="json")]
    return of_value([VERSION, shape, of_tokenizer(tokenizer), chosen, others, examples.digest()])[:32]


def of_tokenizer(tokenizer: Any) -> str:
    """Hash of what a tokenizer does."""
    backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    if backend is not None:
        return of_value(backend.to_str())
    return of_value([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map])


def store(place: Path, rows: EncodedRows) -> None:
    """Write a folder that appears at once."""
    with atomic.publish_folder(place) as staged:
        files = {}
        for name in ARRAYS:
            array = getattr(rows, name)
            if array is not None:
                np.save(staged / f"{name}.npy", array, allow_pickle=False)
                files[f"{name}.npy"] = of_file(staged / f"{name}.npy")
        table = pa.table({"names": rows.names.column})
        with pa.OSFile(str(staged / "names.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        files["names.arrow"] = of_file(staged / "names.arrow")
        facts = {"version": VERSION, "files": files, "cut": rows.cut, "dropped": rows.dropped}
        (staged / "rows.json").write_text(json.dumps(facts), "utf-8")


def load(place: Path) -> EncodedRows | None:
    """The rows, mapped; None where they are absent, of another version, or damaged."""
    try:
        facts = json.loads((place / "rows.json").read_text("utf-8"))
        if facts["version"] != VERSION:
            return None
        if any(of_file(place / name) != sha for name, sha in facts["files"].items()):
            return None
        arrays = {name: _mapped(place / f"{name}.npy") for name in ARRAYS if f"{name}.npy" in facts["files"]}
        with pa.memory_map(str(place / "names.arrow")) as source:
            names = Names(pa.ipc.open_file(source).read_all()["names"])
        return EncodedRows(**arrays, names=names, cut=facts["cut"], dropped=facts["dropped"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid):
        return None


def _mapped(file: Path) -> np.ndarray:
    array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return array if array.size else np.array(array)
