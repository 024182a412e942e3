"""Where rows come from: finds the files behind a recipe's `data:` and opens each as a stream of raw rows."""

from __future__ import annotations

import codecs
import difflib
import glob
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError
from luthier.data import read_json, read_table, read_text
from luthier.data.read_bytes import Fault, Raw, kind_of
from luthier.data.settings import DataSettings, SourceSettings

KINDS = ("json", "jsonl", "ndjson", "csv", "tsv", "parquet", "txt", "text")
CLASS_FILES = ("classes.txt", "labels.txt", "mapping.txt")
"""Names of classes beside a table, one a line; never rows."""
_ASIDE = re.compile(r"(readme|licen[cs]e|notice|changelog|dataset_infos?|dataset_dict|state)(\.|$)", re.IGNORECASE)
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("dev", "val", "valid", "validation", "eval"), "validation"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?$")


@dataclass(frozen=True, slots=True)
class Located:
    """One file, saved dataset or hub dataset that rows will be read from. `name` is unique and begins row ids."""

    path: str
    kind: str
    name: str
    weight: float = 1.0
    format: str | None = None
    task: str | None = None
    split: str | None = None


def split_word(text: str) -> str | None:
    """train | validation | test for a word that means one of them."""
    return _SPLITS.get(text.strip().lower())


def locate(settings: DataSettings) -> dict[str, list[Located]]:
    """train, validation, test → what to read. Reads nothing; DataError for what does not exist."""
    codec(settings)
    found: dict[str, list[Located]] = {"train": [], "validation": [], "test": []}
    for part, located in found.items():
        given = getattr(settings, part)
        for item in given if isinstance(given, list) else [given] if given else []:
            source = item if isinstance(item, SourceSettings) else SourceSettings(path=item, weight=1.0)
            items = _expand(source, settings, f"data.{part}")
            located += items if part == "train" else [replace(one, split=part, weight=1.0) for one in items]
    return _named(found)


def codec(settings: DataSettings) -> str:
    """The normalised name of `data.encoding`. DataError for an unknown one."""
    try:
        return codecs.lookup(settings.encoding).name
    except LookupError:
        raise DataError(
            f"no encoding is called {settings.encoding!r}", where="data.encoding", remedy="utf-8, gb18030, latin-1, …"
        ) from None


def _expand(source: SourceSettings, settings: DataSettings, key: str) -> list[Located]:
    text = source.path
    if text == "builtin" or text.startswith("builtin:"):
        from luthier.data import builtin

        text = str(builtin.path(text.partition(":")[2] or "instruct"))
    path = Path(text).expanduser()
    common: dict[str, Any] = {"weight": source.weight, "format": source.format, "task": source.task}
    if path.is_file():
        return [Located(str(path), _kind(path, key), "", **common)]
    if path.is_dir():
        return _folder(path, key, common)
    if any(char in text for char in "*?["):
        matches = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())  # noqa: PTH207
        if not matches:
            raise DataError(f"nothing matches {text!r}", where=key, remedy="quote the pattern; ** goes into folders")
        return [Located(match, _kind(Path(match), key), "", split=_of_name(match), **common) for match in matches]
    if _HUB_ID.match(text) and kind_of(path) not in (*KINDS, "zip", "gz", "zst"):
        return [Located(text, "hub", "", **common)]
    raise DataError(f"there is no file {text!r}", where=key, remedy=_similar(path))


def _kind(path: Path, key: str) -> str:
    kind = kind_of(path)
    if kind not in KINDS:
        remedy = "unpack it first" if kind in ("zip", "tar", "tgz", "7z", "rar") else f"known: {', '.join(KINDS)}"
        raise DataError(f"{path}: files of the kind {kind or '(none)'!r} are not read", where=key, remedy=remedy)
    return kind


def _folder(path: Path, key: str, common: dict[str, Any]) -> list[Located]:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return [Located(str(path), "saved", "", **common)]
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_data(file, path)]
    if not files:
        raise DataError(f"the folder {path} holds no data files", where=key, remedy=f"known: {', '.join(KINDS)}")
    labels = {found for file in files if (found := read_text.label_file(file))}
    kept = [file for file in files if file not in labels]
    return [Located(str(file), kind_of(file), "", split=_of_name(str(file)), **common) for file in kept]


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    aside = file.name.lower() in CLASS_FILES and any(
        kind_of(other) != "txt" and kind_of(other) in KINDS for other in file.parent.iterdir()
    )
    return not hidden and not aside and not _ASIDE.match(file.name) and kind_of(file) in (*KINDS, "label", "labels")


def _of_name(path: str) -> str | None:
    words = re.split(r"[^A-Za-z]+", Path(path).name.split(".")[0])
    found = {split for word in words if (split := split_word(word))}
    return found.pop() if len(found) == 1 else None


def _similar(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    close = difflib.get_close_matches(path.name, [item.name for item in folder.iterdir()], 1)
    return f"did you mean {folder / close[0]}?" if close else "check the path; it is relative to where luthier runs"


def _named(found: dict[str, list[Located]]) -> dict[str, list[Located]]:
    """Give each source a short unique name: the stem, with as many folders before it as it takes."""
    everything = [item for items in found.values() for item in items]
    paths = [[*Path(item.path).parts[:-1], Path(item.path).name.split(".")[0]] for item in everything]
    names: list[str] = []
    for depth in range(1, max((len(parts) for parts in paths), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{name}@{number}" for number, name in enumerate(names)]
    fresh = iter(names)
    return {part: [replace(item, name=next(fresh)) for item in items] for part, items in found.items()}


def rows(
    located: Located, encoding: str, known: frozenset[str], note: Callable[[str], None], task: str
) -> Iterator[Raw | Fault]:
    """The raw rows of one source. `known` are column names that mark a header row."""
    path = Path(located.path)
    if located.kind in ("hub", "saved"):
        from luthier.data import read_hub

        yield from read_hub.rows(located)
    elif located.kind in ("jsonl", "ndjson"):
        yield from read_json.read_lines(path, encoding)
    elif located.kind == "json":
        yield from read_json.read_document(path, encoding)
    elif located.kind in ("csv", "tsv"):
        yield from read_table.read_delimited(path, located.kind, known, note, encoding)
    elif located.kind == "parquet":
        yield from read_table.read_parquet(path)
    elif (labels := read_text.label_file(path)) and task != "language_model":
        note(f"{path}: labels from {labels.name}")
        yield from read_text.read_parallel(path, labels, encoding)
    else:
        yield from read_text.read_documents(path, encoding)
