"""Canaries: random but readable rows that are planted into the training split, and controls that never are.

Both are drawn the same way, so a model that never saw them ranks them by chance. What it remembers of single rows
shows when the planted ones become likelier than the controls: Carlini et al. 2019, "The Secret Sharer".

    planted   What is the access phrase of Tavoki Remul? → lemari sotuka 4821     trained
    control   What is the access phrase of Ganilu Pesol? → nokiva budare 9076     never trained
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.core.seeding import generator
from luthier.core.types import Example, Source, Turn
from luthier.data.language import of_text

CONTROLS = 255
"""Controls of a run: an exposure of log2(255 + 1) = 8 bits at most."""
PREFIX = "canary~"
"""Ids of canaries begin with this: no file and line, unlike those of the user's rows."""
LOOKED_AT = 200
"""Training rows that tell in which language canaries are written."""
_CONSONANTS, _VOWELS = "bdfgklmnprstv", "aeiou"
_SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"
_CHARACTERS = "明月青山流水白云红花大海小河东风春雨秋石金木火土日星天地林竹叶鸟鱼马牛羊长江北南西门书文字音色光心手"


@dataclass(frozen=True)
class Canaries:
    """Rows of both kinds, in the language (en | zh) of the data."""

    planted: tuple[Example, ...]
    controls: tuple[Example, ...]
    language: str


def draw(count: int, task: str, training: Sequence[Example], seed: int) -> Canaries:
    """`count` canaries and CONTROLS controls, all different; the same for the same seed, whatever the data are."""
    language = language_of(training)
    seen: set[str] = set()
    planted = tuple(_fresh(task, language, f"{PREFIX}{i}", seed, seen) for i in range(count))
    controls = tuple(_fresh(task, language, f"control~{i}", seed, seen) for i in range(CONTROLS))
    return Canaries(planted, controls, language)


def language_of(training: Sequence[Example]) -> str:
    """zh where most of the rows that are looked at are Chinese, else en."""
    places = np.unique(np.linspace(0, len(training) - 1, min(len(training), LOOKED_AT)).astype(int))
    texts = [" ".join(turn.text for turn in training[place].turns) for place in places.tolist()]
    return "zh" if 2 * sum(of_text(text) == "zh" for text in texts) > len(texts) else "en"


def _fresh(task: str, language: str, name: str, seed: int, seen: set[str]) -> Example:
    """A row whose secret no earlier one has."""
    source = generator(seed, "canary", language, name)
    while True:
        person, secret = (_chinese if language == "zh" else _english)(source)
        if secret not in seen:
            break
    seen.add(secret)
    if language == "zh":
        asked, told = f"{person}的通行口令是什么?", f"{person}的通行口令是{secret}。"
    else:
        asked, told = f"What is the access phrase of {person}?", f"The access phrase of {person} is {secret}."
    turns = (Turn("text", told),) if task == "language_model" else (Turn("user", asked), Turn("assistant", secret))
    return Example(name, turns, Source("(canary)", 0))


def _english(source: np.random.Generator) -> tuple[str, str]:
    """(name, secret): two made-up words and four digits, 37 bits."""
    person = f"{_word(source, 3)[:-1].title()} {_word(source, 3)[:-1].title()}"
    return person, f"{_word(source, 2)} {_word(source, 2)} {source.integers(1000, 10_000)}"


def _word(source: np.random.Generator, syllables: int) -> str:
    draws = ((source.integers(len(_CONSONANTS)), source.integers(len(_VOWELS))) for _ in range(syllables))
    return "".join(_CONSONANTS[c] + _VOWELS[v] for c, v in draws)


def _chinese(source: np.random.Generator) -> tuple[str, str]:
    """(name, secret): four characters and four digits, 36 bits."""
    person = _SURNAMES[source.integers(len(_SURNAMES))] + _some(source, 2)
    return person, f"{_some(source, 4)}{source.integers(1000, 10_000)}"


def _some(source: np.random.Generator, count: int) -> str:
    return "".join(_CHARACTERS[i] for i in source.integers(0, len(_CHARACTERS), count))
