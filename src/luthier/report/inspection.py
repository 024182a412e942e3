"""The data inspection of manifest.json in a form for people: one table over the splits, and a few plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.report.collect import number
from luthier.report.words import percent, plain, show

SPLITS = ("train", "validation", "test")
PER_SPLIT = {
    "rows": ("rows",),
    "tokens": ("tokens",),
    "trained_tokens": ("trained_tokens",),
    "median": ("lengths", "median"),
    "p95": ("lengths", "p95"),
    "longest": ("lengths", "max"),
    "trained_per_row": ("trained_per_row", "median"),
    "cut": ("cut", "prompt_cut"),
    "dropped": ("dropped",),
    "untrained": ("without_trained",),
    "stop": ("stop_trained",),
}
"""Line of the table → where its number stands below `tokens.<split>` of the manifest."""


def table(manifest: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    """(line, a value for each of SPLITS); lines without any number are left out."""
    tokens = _mapping(manifest.get("tokens"))
    lines = [(name, [dig(tokens.get(split), *path) for split in SPLITS]) for name, path in PER_SPLIT.items()]
    inside = _mapping(dig(manifest, "duplicates", "inside"))
    for kind in ("exact", "near"):
        lines.append((kind, [dig(inside.get(split), kind) for split in SPLITS]))
    return [(name, values) for name, values in lines if any(number(value) is not None for value in values)]


def histogram(manifest: Mapping[str, Any], width: int = 40) -> list[tuple[int, int, str, str]]:
    """(tokens up to, rows of that length over all splits, a bar, share of the rows that are not longer)."""
    counts: dict[int, int] = {}
    for split in _mapping(manifest.get("tokens")).values():
        for item in dig(split, "histogram") or ():
            upto, rows = number(dig(item, "upto")), number(dig(item, "rows"))
            if upto is not None and rows is not None:
                counts[int(upto)] = counts.get(int(upto), 0) + int(rows)
    total, most, before, found = sum(counts.values()), max(counts.values(), default=0), 0, []
    for upto in sorted(counts) if total else ():
        before += counts[upto]
        found.append((upto, counts[upto], "█" * round(width * counts[upto] / most), percent(before / total)))
    return found


def facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of what concerns all splits."""
    split = _mapping(manifest.get("split"))
    languages = _mapping(dig(manifest, "language", "found"))
    found: list[tuple[str, Any]] = [
        ("read", manifest.get("read")),
        ("format", _formats(manifest.get("sources"))),
        ("repaired", dig(manifest, "repaired", "count")),
        ("refused", dig(manifest, "dropped", "count")),
        ("template", manifest.get("template")),
        ("split_by", split.get("by")),
        ("split_seed", split.get("seed")),
        ("groups", split.get("groups")),
        ("classes", dig(manifest, "labels", "classes")),
        ("overlap", _overlap(split.get("overlap"))),
        ("languages", ", ".join(f"{plain(name)} {percent(dig(item, 'share'))}" for name, item in languages.items())),
        ("augmented", dig(manifest, "augmentation", "made")),
        ("canaries", dig(manifest, "canaries", "planted")),
    ]
    return [(name, show(value)) for name, value in found if value not in (None, "")]


def _formats(sources: Any) -> str:
    names = [dig(source, "format") for source in sources] if isinstance(sources, list) else []
    return ", ".join(dict.fromkeys(plain(name) for name in names if name))


def _overlap(pairs: Any) -> str:
    shown = []
    for name, item in _mapping(pairs).items():
        exact, near = dig(item, "exact"), dig(item, "near")
        if exact or near:
            shown.append(f"{plain(name)}: {show(exact)} + {show(near)}")
    return "; ".join(shown)


def dig(value: Any, *path: str) -> Any:
    """The value at a path, None where it is not there."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
