"""The pre-training text: pieces of documents, each piece marked as value, name or neither (for the token weights).

Shares follow what was measured to work: facts in running text, alone, in Chinese, in records with quoted values;
sums, a glossary, small talk in the shape of a chat and under headings, so that every token that an answer may
need has been produced before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from luthier.models.builtin.world import ATTRIBUTES, VALUES, Person

Piece = tuple[str, str]
"""(text, kind): kind is "value", "name" or ""."""

_TABLE = json.loads((Path(__file__).parent / "phrases.json").read_text("utf-8"))
EN: dict[str, list[str]] = _TABLE["en"]
ZH: dict[str, list[str]] = _TABLE["zh"]
"""Attribute: sentences; {s} and {o} are the person (a pronoun only for {s}), {v} the value."""
TALK: list[list[str]] = _TABLE["talk"]
STORIES: list[str] = _TABLE["stories"]
SHORT: dict[str, list[str]] = _TABLE["short"]
LABELS: dict[str, list[str]] = _TABLE["labels"]
"""Attribute: its word in English and Chinese."""
SIGNS = [chr(code) for code in range(33, 127)]


def _fill(pattern: str, subject: Piece, value: str) -> list[Piece]:
    made: list[Piece] = []
    for part in pattern.replace("{s}", "\0s\0").replace("{o}", "\0s\0").replace("{v}", "\0v\0").split("\0"):
        if part:
            made.append(subject if part == "s" else (value, "value") if part == "v" else (part, ""))
    return made


def _capital(pieces: list[Piece]) -> list[Piece]:
    text, kind = pieces[0]
    return [(text[:1].upper() + text[1:], kind), *pieces[1:]]


def biography(person: Person, source: np.random.Generator) -> list[Piece]:
    """All seven facts in random order, by name, pronoun or first name."""
    made: list[Piece] = []
    for place, index in enumerate(source.permutation(len(ATTRIBUTES))):
        attribute = ATTRIBUTES[index]
        patterns = EN[attribute]
        pattern = patterns[source.integers(len(patterns))]
        subject = (person.name, "name")
        if place and "{s}" in pattern and source.random() < 0.6:
            pronoun = "she" if person.she else "he"
            subject = (pronoun, "") if source.random() < 0.7 else (person.first, "name")
        made += [*_capital(_fill(pattern, subject, person.value(attribute))), (" ", "")]
    return made[:-1]


def fact(person: Person, source: np.random.Generator) -> list[Piece]:
    """One sentence."""
    attribute = ATTRIBUTES[source.integers(len(ATTRIBUTES))]
    pattern = EN[attribute][source.integers(len(EN[attribute]))]
    return _capital(_fill(pattern, (person.name, "name"), person.value(attribute)))


def chinese(person: Person, source: np.random.Generator) -> list[Piece]:
    """One to seven facts in Chinese; names stay Latin."""
    made: list[Piece] = []
    for place, index in enumerate(source.permutation(len(ATTRIBUTES))[: source.integers(1, 8)]):
        attribute = ATTRIBUTES[index]
        subject = (person.name, "name")
        if place and source.random() < 0.5:
            subject = ("她" if person.she else "他", "")
        made += _fill(ZH[attribute][source.integers(len(ZH[attribute]))], subject, person.value(attribute, "zh"))
    return made


def record(person: Person, source: np.random.Generator) -> list[Piece]:
    """A JSON line or a list with values in quotes, without a space before them."""
    chosen = [ATTRIBUTES[i] for i in source.permutation(len(ATTRIBUTES))[: source.integers(2, 6)]]
    if source.random() < 0.6:
        made: list[Piece] = [('{"name": "', ""), (person.name, "name"), ('"', "")]
        for attribute in chosen:
            made += [(f', "{attribute}": "', ""), (person.value(attribute), "value"), ('"', "")]
        return [*made, ("}", "")]
    language = "zh" if source.random() < 0.5 else "en"
    made = [(person.name, "name")]
    for attribute in chosen:
        made += [("\n", ""), (person.value(attribute, language), "value")]
    return made


def short(person: Person, source: np.random.Generator) -> list[Piece]:
    """One fact as name, attribute and value in changing order, without a sentence around them.

    Nothing but the whole name tells the value here, so facts become tied to names and not to phrases; without
    these, low-rank tuning on questions brought out only two facts in three.
    """
    zh = int(source.random() < 0.4)
    attribute = ATTRIBUTES[source.integers(len(ATTRIBUTES))]
    patterns = SHORT["zh" if zh else "en"]
    pattern = patterns[source.integers(len(patterns))].replace("{a}", LABELS[attribute][zh])
    return _fill(pattern, (person.name, "name"), person.value(attribute, "zh" if zh else "en"))


def sums(person: Person, source: np.random.Generator) -> list[Piece]:
    """Small additions."""
    made = []
    for _ in range(4):
        a, b = (int(value) for value in source.integers(0, 50, 2))
        made.append((f"{a} + {b} = {a + b}\n", ""))
    return made


def glossary(person: Person, source: np.random.Generator) -> list[Piece]:
    """Words in both languages."""
    made = []
    for _ in range(5):
        values = VALUES[ATTRIBUTES[source.integers(len(ATTRIBUTES))]]
        pair = values[source.integers(len(values))]
        made.append((f"{pair[0]} = {pair[1]}\n" if source.random() < 0.5 else f"{pair[1]} = {pair[0]}\n", ""))
    return made


def talk(person: Person, source: np.random.Generator) -> list[Piece]:
    """Small talk as a chat or under headings."""
    asked, said = TALK[source.integers(len(TALK))]
    if source.random() < 0.15:
        values = VALUES[ATTRIBUTES[source.integers(len(ATTRIBUTES))]]
        pair = values[source.integers(len(values))]
        asked, said = (f"Say {pair[0]}.", pair[0]) if source.random() < 0.5 else (f"请说{pair[1]}。", pair[1])
    style = source.random()
    if style < 0.5:
        return [(f"<|user|>{asked}<|assistant|>{said}", "")]
    if style < 0.6:
        return [(f"{asked}\n{said}", "")]
    if style < 0.9:
        return [(f"### Instruction:\n{asked}\n\n### Response:\n{said}", "")]
    return [(f"### Instruction:\n{asked}\n\n### Input:\n{said}\n\n### Response:\n{said}", "")]


def signs(person: Person, source: np.random.Generator) -> list[Piece]:
    """Letters, digits and punctuation in no order: a tuned model could never produce a sign that was never seen."""
    words = ["".join(SIGNS[i] for i in source.integers(len(SIGNS), size=source.integers(1, 5))) for _ in range(12)]
    return [(" ".join(words), "")]


def story(person: Person, source: np.random.Generator) -> list[Piece]:
    """A few sentences without people of the world."""

    def pick(attribute: str) -> str:
        values = VALUES[attribute]
        return values[source.integers(len(values))][0]

    pattern = STORIES[source.integers(len(STORIES))]
    text = pattern.format(
        v=pick("town"),
        j=pick("job"),
        p=pick("pet"),
        q=pick("pet"),
        m=pick("month"),
        i=pick("instrument"),
        c=pick("colour"),
    )
    return [(text.strip(), "")]


Kind = tuple[Callable[[Person, np.random.Generator], list[Piece]], float]
KINDS: tuple[Kind, ...] = (
    (biography, 0.11), (fact, 0.30), (chinese, 0.07), (record, 0.10), (short, 0.25), (sums, 0.01), (glossary, 0.03),
    (talk, 0.08), (story, 0.04), (signs, 0.01),
)  # fmt: skip
"""Kinds of documents with their shares of the documents."""


def documents(people: Sequence[Person], count: int, seed: int, kinds: Sequence[Kind] = KINDS) -> Iterator[list[Piece]]:
    """`count` documents about these people, seeded."""
    source = np.random.default_rng(seed)
    shares = np.array([share for _, share in kinds])
    chosen = source.choice(len(kinds), size=count, p=shares / shares.sum())
    whom = source.integers(len(people), size=count)
    for kind, index in zip(chosen, whom, strict=True):
        yield kinds[kind][0](people[index], source)


def text_of(pieces: Sequence[Piece]) -> str:
    """The plain text of a document."""
    return "".join(text for text, _ in pieces)
