"""Write the built-in data sets: `python -m luthier.data.builtin.generate [--out DIR]`. Seeded; the same everywhere.

They ask about the people whom the built-in base read about. Rows carry the person as `group`, and a split keeps
groups together: a tuned model is tested on people about whom it was asked nothing. It can answer only from what
the base knows, so the score measures how well tuning brings knowledge out, not how well it memorises rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.models.builtin.corpus import documents, text_of
from luthier.models.builtin.world import Person, people

SEED = 11
GENERAL_ROWS = 300
LONG_ROWS, LONG_CHARACTERS = 24, 9_000
_TABLE = json.loads((Path(__file__).parent / "questions.json").read_text("utf-8"))

Row = dict[str, Any]
Maker = Callable[[Person, np.random.Generator], list[Row]]


def _pick(phrases: Sequence[str], source: np.random.Generator) -> str:
    return phrases[int(source.integers(len(phrases)))]


def _short(person: Person, source: np.random.Generator, language: str, count: int) -> list[Row]:
    """`count` of the six questions, each in one of its phrasings."""
    questions = _TABLE[f"short_{language}"]
    rows = []
    for index in sorted(source.permutation(len(questions))[:count]):
        attribute = list(questions)[index]
        asked = _pick(questions[attribute], source).format(n=person.name)
        answer = person.value(attribute, language)
        rows.append({"instruction": asked, "input": "", "output": answer, "group": person.name})
    return rows


def short_en(person: Person, source: np.random.Generator) -> list[Row]:
    """Three English questions with one-word answers."""
    return _short(person, source, "en", 3)


def short_zh(person: Person, source: np.random.Generator) -> list[Row]:
    """Three Chinese questions with short answers."""
    return _short(person, source, "zh", 3)


def biography(person: Person, source: np.random.Generator) -> list[Row]:
    """A name; one sentence with four facts."""
    facts = {name: person.value(name) for name in ("town", "job", "pet", "month")}
    said = "{who} lives in {town}, works as a {job}, has a {pet} and was born in {month}."
    output = said.format(who="She" if person.she else "He", **facts)
    return [{"instruction": _TABLE["biography"], "input": person.name, "output": output, "group": person.name}]


def card(person: Person, source: np.random.Generator) -> list[Row]:
    """A name; a JSON card of three facts."""
    facts = {name: person.value(name) for name in ("town", "job", "pet")}
    output = json.dumps(facts)
    return [{"instruction": _TABLE["card"], "input": person.name, "output": output, "group": person.name}]


def instruct(person: Person, source: np.random.Generator) -> list[Row]:
    """The mixture: two questions in each language, the biography, the card."""
    questions = [*_short(person, source, "en", 2), *_short(person, source, "zh", 2)]
    return [*questions, *biography(person, source), *card(person, source)]


def classify(person: Person, source: np.random.Generator) -> list[Row]:
    """Two sentences that name a person; the label is the club, which no sentence tells."""
    texts = [_TABLE["classify"][i] for i in source.permutation(len(_TABLE["classify"]))[:2]]
    return [{"text": t.format(n=person.name), "label": person.value("club"), "group": person.name} for t in texts]


MAKERS: tuple[Maker, ...] = (short_en, short_zh, biography, card, instruct, classify)


def rows_of(maker: Maker) -> list[Row]:
    """All rows of one data set, in a seeded order."""
    source = np.random.default_rng([SEED, *maker.__name__.encode()])
    rows = [row for person in people() for row in maker(person, source)]
    return [rows[index] for index in source.permutation(len(rows))]


def general() -> list[Row]:
    """Texts of the pre-training's kind that the base never read: what tuning should not make it forget."""
    return [{"text": text_of(pieces)} for pieces in documents(people(), GENERAL_ROWS, SEED)]


def long() -> list[Row]:
    """Long documents of such texts, four windows each; a pass key is said at the beginning and again at the end."""
    source = np.random.default_rng([SEED, *b"long"])
    texts = iter([text_of(pieces) for pieces in documents(people(), 60 * LONG_ROWS * 10, SEED + 1)])
    rows = []
    for _ in range(LONG_ROWS):
        key = int(source.integers(10_000, 100_000))
        parts = [f"The pass key is {key}."]
        while sum(map(len, parts)) < LONG_CHARACTERS:
            parts.append(next(texts))
        rows.append({"text": "\n".join([*parts, f"What is the pass key? The pass key is {key}."])})
    return rows


def write(folder: Path) -> None:
    """Every data set as `NAME.jsonl`."""
    sets = {maker.__name__: rows_of(maker) for maker in MAKERS} | {"general": general(), "long": long()}
    for name, rows in sets.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
