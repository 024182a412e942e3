"""Long-range tasks made from any text: what must be found stands far from where it is asked for.

    passkey           one number, said once                       (Mohtashami & Jaggi 2023)
    needle            one odd sentence                            (Kamradt 2023)
    multi_key         four keys with owners, one asked for        (RULER, Hsieh et al. 2024)
    variables         a chain of assignments, all names of a value (RULER)
    two_paragraphs    an answer that needs two facts from two places
    order             who came in which order

English and Chinese. Sizes are counted by whatever `tokens` counts, so any tokenizer will do. Train and test draw from
different streams and from disjoint keys: no answer of one split is an answer of the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from luthier.core.errors import DataError
from luthier.core.seeding import generator

Split = Literal["train", "test"]
KINDS = ("passkey", "needle", "multi_key", "variables", "two_paragraphs", "order")
_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_NAMES = {
    "en": ("Ada", "Ben", "Cora", "Dan", "Eve", "Finn", "Gia", "Hugo", "Ida", "Jon", "Kim", "Leo"),
    "zh": ("小明", "小红", "小刚", "小丽", "小华", "小芳", "小强", "小梅", "小军", "小燕", "小龙", "小云"),
}
_THINGS = {
    "en": (("eat", "a plum"), ("fly", "a kite"), ("read", "a map"), ("paint", "a door"), ("row", "a boat"),
           ("ring", "a bell"), ("bake", "a cake"), ("plant", "a tree"), ("wash", "a cup"), ("fix", "a clock")),
    "zh": (("吃", "李子"), ("放", "风筝"), ("看", "地图"), ("刷", "大门"), ("划", "小船"),
           ("敲", "铜钟"), ("烤", "蛋糕"), ("种", "小树"), ("洗", "杯子"), ("修", "时钟")),
}  # fmt: skip
_PLACES = {
    "en": ("North Hill", "Old Mill", "Red Bridge", "Low Field", "West Gate", "Long Pond", "Stone Row", "Dry Well"),
    "zh": ("北山", "老磨坊", "红桥", "洼地", "西门", "长塘", "石街", "枯井"),
}


@dataclass(frozen=True)
class LongTask:
    """A prompt whose answer stands in it. `depth` 0 is its beginning, 1 its end; `floor` is blind guessing's share."""

    kind: str
    language: str
    prompt: str
    answer: str
    depth: float
    floor: float

    def as_row(self) -> dict[str, Any]:
        """A row of the prompt_response format."""
        return {"prompt": self.prompt, "response": self.answer}


def sentences_of(text: str) -> list[str]:
    """Sentences of the filling, without empty ones."""
    return [part.strip() for part in _SENTENCES.split(text) if part and part.strip()]


def language_of(text: str) -> str:
    """zh where Chinese characters make up a fifth of the text."""
    sample = text[:20_000]
    return "zh" if sum("一" <= sign <= "鿿" for sign in sample) > len(sample) / 5 else "en"


def make(
    kind: str,
    text: str,
    size: int,
    tokens: Callable[[str], int],
    *,
    split: Split,
    number: int = 0,
    seed: int = 0,
    depth: float | None = None,
    language: str | None = None,
) -> LongTask:
    """Task `number` of a split: prompt and answer together are at most `size` tokens, and fill it but for a sentence.

    DataError where the text has too few sentences, or `size` is smaller than the task itself.
    """
    language = language or language_of(text)
    source = generator(seed, "longtasks", split, kind, language, number)
    facts, question, answer, floor = _MAKERS[kind](source, language, split)
    places = np.sort(source.random(len(facts))) if depth is None else _around(depth, len(facts), source)
    filling = sentences_of(text)
    if len(filling) < 2:
        raise DataError("the text has no two sentences to hide something between", remedy="give a longer text")
    joint = "" if language == "zh" else " "
    room = size - tokens(joint.join([*facts, question]) + answer)
    if room <= 0:
        raise DataError(f"{kind} alone is longer than {size} tokens", remedy="ask for a longer size")
    start = int(source.integers(len(filling)))
    kept: list[str] = []
    used = 0
    while used < room:
        sentence = filling[(start + len(kept)) % len(filling)]
        used += max(1, tokens(sentence + joint))
        kept.append(sentence)
    while True:
        prompt = _together(kept, facts, places, question, joint)
        if not kept or tokens(prompt + answer) <= size:
            return LongTask(kind, language, prompt, answer, round(float(places.mean()), 3), floor)
        kept.pop()


def make_many(
    kinds: Sequence[str], text: str, size: int, tokens: Callable[[str], int], count: int, split: Split, seed: int = 0
) -> list[LongTask]:
    """`count` tasks, the kinds in turn."""
    return [
        make(kinds[i % len(kinds)], text, size, tokens, split=split, number=i // len(kinds), seed=seed)
        for i in range(count)
    ]


def _around(depth: float, count: int, source: np.random.Generator) -> np.ndarray:
    """The first fact at `depth`, others anywhere: for one fact exactly there."""
    return np.sort(np.concatenate([[depth], source.random(count - 1)]))


def _together(kept: list[str], facts: list[str], places: np.ndarray, question: str, joint: str) -> str:
    parts: list[str] = []
    at = [round(float(place) * len(kept)) for place in places]
    for index in range(len(kept) + 1):
        parts += [fact for fact, place in zip(facts, at, strict=True) if place == index]
        parts += kept[index : index + 1]
    return joint.join([*parts, question])


def _number(source: np.random.Generator, split: Split) -> str:
    """Five digits; the last one is even in training and odd in tests."""
    return str(2 * int(source.integers(5_000, 50_000)) + (split == "test"))


def _pick(source: np.random.Generator, values: Sequence[Any], count: int) -> list[Any]:
    return [values[index] for index in source.permutation(len(values))[:count]]


def _halves(values: Sequence[Any], split: Split) -> Sequence[Any]:
    """Every other one: train and test have different ones."""
    return values[split == "test" :: 2]


_Made = tuple[list[str], str, str, float]


def _passkey(source: np.random.Generator, language: str, split: Split) -> _Made:
    key = _number(source, split)
    if language == "zh":
        return [f"通行密钥是{key}。请记住，{key}是通行密钥。"], "问：通行密钥是什么？答：通行密钥是", key, 1 / 45_000
    fact = f"The pass key is {key}. Remember it, {key} is the pass key."
    return [fact], "What is the pass key? The pass key is", f" {key}", 1 / 45_000


def _needle(source: np.random.Generator, language: str, split: Split) -> _Made:
    things = _halves(_THINGS[language], split)
    verb, thing = things[int(source.integers(len(things)))]
    place = _pick(source, _PLACES[language], 1)[0]
    floor = 1 / len(things)
    if language == "zh":
        return (
            [f"在{place}最好的事是{verb}{thing}。"],
            f"问：在{place}最好的事是什么？答：最好的事是",
            verb + thing,
            floor,
        )
    fact = f"The best thing to do at {place} is to {verb} {thing}."
    return [fact], f"What is the best thing to do at {place}? It is to", f" {verb} {thing}", floor


def _multi_key(source: np.random.Generator, language: str, split: Split) -> _Made:
    names = _pick(source, _NAMES[language], 4)
    keys = [_number(source, split) for _ in names]
    asked = int(source.integers(4))
    if language == "zh":
        facts = [f"{name}的密钥是{key}。" for name, key in zip(names, keys, strict=True)]
        return facts, f"问：{names[asked]}的密钥是什么？答：{names[asked]}的密钥是", keys[asked], 0.25
    facts = [f"The key of {name} is {key}." for name, key in zip(names, keys, strict=True)]
    question = f"What is the key of {names[asked]}? The key of {names[asked]} is"
    return facts, question, f" {keys[asked]}", 0.25


def _variables(source: np.random.Generator, language: str, split: Split) -> _Made:
    letters = [f"X{letter}" for letter in _pick(source, "ABCDEFGHJKLMNPQRSTUVWXYZ", 5)]
    chain, other = letters[:3], letters[3:]
    value, wrong = _number(source, split), _number(source, split)
    facts = [f"VAR {chain[0]} = {value}.", *(f"VAR {b} = VAR {a}." for a, b in pairwise(chain))]
    facts.insert(int(source.integers(1, 4)), f"VAR {other[0]} = {wrong}.")
    said = ", ".join(chain)
    if language == "zh":
        return facts, f"问：哪三个变量的值是{value}？按出现的顺序答：", said, 1 / 60
    return facts, f"Which three variables have the value {value}? In their order they are", f" {said}", 1 / 60


def _two_paragraphs(source: np.random.Generator, language: str, split: Split) -> _Made:
    names = _pick(source, _NAMES[language], 4)
    places = _pick(source, _halves(_PLACES[language], split), 2)
    facts = []
    for index, place in enumerate(places):
        guest, host = names[2 * index : 2 * index + 2]
        zh = [f"{guest}住在{host}的房子里。", f"{host}的房子在{place}。"]
        en = [f"{guest} lives in the house of {host}.", f"The house of {host} stands at {place}."]
        facts += zh if language == "zh" else en
    facts = [facts[index] for index in source.permutation(4)]
    if language == "zh":
        return facts, f"问：{names[0]}住在哪里？答：{names[0]}住在", places[0], 0.5
    return facts, f"Where does {names[0]} live? {names[0]} lives at", f" {places[0]}", 0.5


def _order(source: np.random.Generator, language: str, split: Split) -> _Made:
    names = _pick(source, _halves(_NAMES[language], split), 4)
    if language == "zh":
        return [f"{n}来到了门口。" for n in names], "问：他们按什么顺序来到门口？答：", "，".join(names), 1 / 24
    facts = [f"{name} arrived at the gate." for name in names]
    return facts, "In which order did they arrive at the gate? The order is", f" {', '.join(names)}", 1 / 24


_MAKERS: dict[str, Callable[[np.random.Generator, str, Split], _Made]] = {
    "passkey": _passkey,
    "needle": _needle,
    "multi_key": _multi_key,
    "variables": _variables,
    "two_paragraphs": _two_paragraphs,
    "order": _order,
}
