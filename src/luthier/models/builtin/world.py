"""A little world: 320 people with seven facts each, told in English and Chinese. Seeded; the same everywhere.

The base model reads these facts in its pre-training text; the built-in instruction sets ask for them. So tuning
means bringing out knowledge that stands in the weights (after Allen-Zhu & Li, "Physics of Language Models 3.1",
arXiv:2309.14316), which a randomly initialised model cannot do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEED = 7
PEOPLE = 320

_TABLE = json.loads((Path(__file__).parent / "world.json").read_text("utf-8"))
SHE, LAST = frozenset(_TABLE["she"]), tuple(_TABLE["last"])
FIRST = tuple(sorted((*_TABLE["she"], *_TABLE["he"])))
VALUES: dict[str, list[tuple[str, str]]] = {
    name: [(english, chinese) for english, chinese in pairs] for name, pairs in _TABLE["values"].items()
}
"""Attribute: its values, each in English and Chinese."""
ATTRIBUTES = tuple(VALUES)


@dataclass(frozen=True)
class Person:
    """A name and, for each attribute, the index of its value. `she` decides the pronoun."""

    first: str
    last: str
    she: bool
    facts: tuple[int, ...]

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first} {self.last}"

    def value(self, attribute: str, language: str = "en") -> str:
        """The person's value in English or Chinese."""
        pair = VALUES[attribute][self.facts[ATTRIBUTES.index(attribute)]]
        return pair[0] if language == "en" else pair[1]


def people(count: int = PEOPLE, seed: int = SEED, shuffled: bool = False) -> list[Person]:
    """The population, in a fixed order; a smaller `count` is not a part of a larger one.

    `shuffled` gives the same names other facts: a control.
    """
    source = np.random.default_rng(seed)
    pairs = source.permutation(len(FIRST) * len(LAST))[:count]
    made = []
    facts = [[int(source.integers(len(VALUES[name]))) for name in ATTRIBUTES[:-1]] for _ in pairs]
    for known in facts:  # drawn last: it came last, and the other facts stay what they were
        known.append(int(source.integers(len(VALUES[ATTRIBUTES[-1]]))))
    if shuffled:
        order = np.random.default_rng(seed + 1).permutation(count)
        facts = [facts[index] for index in order]
    for pair, known in zip(pairs, facts, strict=True):
        first, last = FIRST[pair // len(LAST)], LAST[pair % len(LAST)]
        made.append(Person(first, last, first in SHE, tuple(known)))
    return made
