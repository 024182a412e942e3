"""The little world and its texts: the same on every machine, and complete."""

from __future__ import annotations

import hashlib

import numpy as np

from luthier.models.builtin.corpus import EN, KINDS, ZH, documents, text_of
from luthier.models.builtin.world import ATTRIBUTES, FIRST, LAST, PEOPLE, VALUES, people


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def test_the_population_is_fixed_and_names_are_unique() -> None:
    known = people()
    assert known == people()
    assert len({person.name for person in known}) == PEOPLE
    assert known[0].name == "Ruben Sauer"
    assert [known[0].value(name) for name in ATTRIBUTES] == [
        VALUES[a][i][0] for a, i in zip(ATTRIBUTES, known[0].facts, strict=True)
    ]


def test_name_parts_and_values_are_distinct_words() -> None:
    words = [word.lower() for word in (*FIRST, *LAST)]
    words += [english.lower() for pairs in VALUES.values() for english, _ in pairs]
    assert len(words) == len(set(words))
    chinese = [value for pairs in VALUES.values() for _, value in pairs]
    assert len(chinese) == len(set(chinese))


def test_values_are_spread_evenly_enough() -> None:
    known = people()
    for place, name in enumerate(ATTRIBUTES):
        counts = np.bincount([person.facts[place] for person in known], minlength=len(VALUES[name]))
        assert counts.max() / PEOPLE < 2 / len(VALUES[name]), name


def test_shuffled_facts_keep_names_and_change_most_facts() -> None:
    known, other = people(), people(shuffled=True)
    assert [person.name for person in known] == [person.name for person in other]
    same = np.mean([np.equal(a.facts, b.facts).mean() for a, b in zip(known, other, strict=True)])
    assert same < 0.2


def test_documents_are_seeded() -> None:
    first = [text_of(pieces) for pieces in documents(people(), 200, 3)]
    assert first == [text_of(pieces) for pieces in documents(people(), 200, 3)]
    assert first != [text_of(pieces) for pieces in documents(people(), 200, 4)]


def test_every_attribute_is_told_in_both_languages() -> None:
    assert set(EN) == set(ZH) == set(ATTRIBUTES)
    for patterns in (*EN.values(), *ZH.values()):
        assert len(patterns) >= 4
        assert all(pattern.count("{v}") == 1 for pattern in patterns)


def test_no_document_asks_about_a_person() -> None:
    """Questions about people stand only in the tuning data, or the base would not need tuning."""
    for pieces in documents(people(), 3000, 8):
        assert not any(kind == "name" for _, kind in pieces) or "?" not in text_of(pieces)


def test_every_kind_of_document_is_made() -> None:
    source = np.random.default_rng(0)
    for make, share in KINDS:
        assert share > 0
        assert text_of(make(people()[0], source)).strip()
