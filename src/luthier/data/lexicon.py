"""Synonym lexicons, read from files that the user has: no downloads, no nltk.

a TSV of synsets        offset TAB pos TAB lemma|lemma|…   (also separated by commas or tabs)
Open Multilingual WordNet .tab      00001740-n TAB cmn:lemma TAB word
a WordNet dict folder   data.noun, data.verb, data.adj, data.adv (Debian's wordnet-base, NLTK's corpora/wordnet)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from luthier.core.errors import DataError

PLACES = (
    "~/nltk_data/corpora/wordnet", "/usr/share/nltk_data/corpora/wordnet", "/usr/share/wordnet",
)  # fmt: skip
VARIABLE = "LUTHIER_LEXICON"
LARGEST = 200 << 20


@lru_cache(maxsize=4)
def synonyms(path: str | None) -> dict[str, tuple[str, ...]]:
    """word (lower case) → its synonyms, from `path`, from LUTHIER_LEXICON, or from a WordNet that is installed."""
    chosen = path or os.environ.get(VARIABLE) or next((p for p in PLACES if Path(p).expanduser().is_dir()), None)
    file = Path(chosen).expanduser() if chosen else None
    if file is None or not file.exists():
        raise DataError(
            f"no synonym lexicon at {chosen}" if chosen else "no synonym lexicon was found",
            where="augment.synonyms.lexicon",
            remedy=f"name a WordNet dict folder, a .tab or a .tsv file there or in {VARIABLE} "
            "(Debian: apt install wordnet-base)",
        )
    found: dict[str, dict[str, None]] = {}
    for synset in _folder(file) if file.is_dir() else _table(file):
        words = [word.replace("_", " ").strip() for word in synset]
        for word in words:
            others = found.setdefault(word.lower(), {})
            others.update({other: None for other in words if other.lower() != word.lower()})
    return {word: tuple(others) for word, others in found.items() if others}


def _folder(folder: Path) -> Iterator[list[str]]:
    files = [folder / f"data.{part}" for part in ("noun", "verb", "adj", "adv")]
    if not any(file.is_file() for file in files):
        raise DataError(
            f"no data.noun … in {folder}", where="augment.synonyms.lexicon", remedy="name a WordNet dict folder"
        )
    for file in files:
        for line in file.read_text("utf-8").splitlines() if file.is_file() else ():
            if line.startswith("  "):
                continue
            fields = line.split(" ")
            count = int(fields[3], 16)
            yield [fields[4 + 2 * index].partition("(")[0] for index in range(count)]


def _table(file: Path) -> Iterator[list[str]]:
    if file.stat().st_size > LARGEST:
        raise DataError(f"{file} is larger than 200 MB", where="augment.synonyms.lexicon")
    groups: dict[str, list[str]] = {}
    for line in file.read_text("utf-8").splitlines():
        fields = line.split("\t")
        if line.startswith("#") or len(fields) < 2:
            continue
        if ":" in fields[1] and len(fields) >= 3:
            if fields[1].endswith(":lemma"):
                groups.setdefault(fields[0], []).append(fields[2].split("+")[0])
            continue
        words = fields[2:] if len(fields) > 2 else fields[1:]
        if len(words) == 1:
            words = words[0].split("|") if "|" in words[0] else words[0].split(",")
        yield [word for word in words if word.strip()]
    yield from groups.values()
