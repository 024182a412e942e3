"""Planted twins are all found; different rows are left apart."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.types import Example, Source, Turn
from luthier.data import twins, twins_find

WORDS = [
    f"{a}{b}{c}" for a in "bdfklmnprst" for b in ("a", "en", "ir", "os", "ut") for c in ("ba", "del", "mo", "ri", "sun")
]
HANZI = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]


def row(number: int, ask: str, answer: str = "") -> Example:
    turns = (Turn("user", ask), Turn("assistant", answer)) if answer else (Turn("user", ask),)
    return Example(f"r{number}", turns, Source("f", number))


def edits(words: list[str], between: str, rng: random.Random) -> dict[str, str]:
    at = rng.randrange(len(words))
    return {
        "exact": between.join(words),
        "case": between.join(words).upper(),
        "space": f"  {between.join(words)} \n",
        "changed": between.join([*words[:at], "zzz" if between else "龘", *words[at + 1 :]]),
        "added": between.join([*words[:at], "zzz" if between else "龘", *words[at:]]),
        "removed": between.join(words[:at] + words[at + 1 :]),
    }


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("length", [8, 15, 39, 41, 60, 200])
@pytest.mark.parametrize("answered", [False, True])
def test_planted_twins_are_all_found_and_nothing_else(language, length, answered):
    rng = random.Random(length)
    source, between = (WORDS, " ") if language == "en" else (HANZI, "")
    texts, pairs = [], []
    for _ in range(150):
        words = rng.choices(source, k=length)
        changed = edits(words, between, rng)
        kind = rng.choice(list(changed))
        pairs.append((len(texts), len(texts) + 1, kind))
        texts += [between.join(words), changed[kind]]
    answers = [f"answer {n // 2}" if answered else "" for n in range(len(texts))]
    found = twins.find([[row(n, text, answer) for n, (text, answer) in enumerate(zip(texts, answers, strict=True))]])
    missed = [(kind, texts[one]) for one, other, kind in pairs if found.clusters[one] != found.clusters[other]]
    assert not missed
    assert len(np.unique(found.clusters)) == 150
    exact = sum(kind in ("exact", "case", "space") for _, _, kind in pairs)
    assert found.exact() == exact


def test_symbols_and_numbers_make_a_difference():
    asked = ["What is 3 + 5?", "What is 3 - 5?", "What is 3 + 6?", "Hi!", "Hi."]
    found = twins.find([[row(n, text) for n, text in enumerate(asked)]], near=False)
    assert len(np.unique(found.wholes)) == 5


def test_width_and_composition_do_not_make_a_difference():
    asked = ["Café ABC 12", "Cafe\u0301 ＡＢＣ １２", "CAFÉ abc\t12"]
    found = twins.find([[row(n, text) for n, text in enumerate(asked)]])
    assert len(np.unique(found.wholes)) == 1


def test_the_same_prompt_with_other_answers_is_one_cluster():
    found = twins.find(
        [[row(0, "name[Aromi], food[Chinese]", "A place."), row(1, "name[Aromi], food[Chinese]", "Other.")]]
    )
    assert found.clusters[0] == found.clusters[1]
    assert found.wholes[0] != found.wholes[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=30))
def test_keys_do_not_depend_on_the_company(texts):
    words, bounds = twins_find.words_of(texts)
    together = twins_find.row_keys(words, bounds)
    for number, text in enumerate(texts):
        assert twins_find.row_keys(*twins_find.words_of([text]))[0] == together[number]
    keys, rows = twins_find.one_out_keys(words, bounds)
    assert len(keys) == len(rows)
    shingled, ends = twins_find.shingles(words, bounds)
    assert ends[-1] == len(shingled)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=6, max_size=12), st.integers(0, 11), st.sampled_from(["x", None]))
def test_a_word_changed_or_removed_leaves_a_common_key(words, at, new):
    at %= len(words)
    other = [*words[:at], *([new] if new else []), *words[at + 1 :]]
    keys, rows = twins_find.one_out_keys(*twins_find.words_of([" ".join(words), " ".join(other)]))
    if len(other) >= twins_find.LEAST:
        assert set(keys[rows == 0].tolist()) & set(keys[rows == 1].tolist())


def test_nothing_and_empty_texts():
    assert len(twins.find([[]]).clusters) == 0
    found = twins.find([[row(0, " "), row(1, "a")]])
    assert len(found.clusters) == 2
