"""The pre-training text: pieces of documents, each piece marked as value, name or neither (for the token weights).

Shares follow what was measured to work: facts in running text, alone, in Chinese, in records with quoted values;
sums, a glossary, small talk in the shape of a chat and under headings, so that every token that an answer may
need has been produced before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from luthier.models.builtin.world import ATTRIBUTES, VALUES, Person

Piece = tuple[str, str]
"""(text, kind): kind is "value", "name" or ""."""

EN: dict[str, tuple[str, ...]] = {
    "town": ("{s} lives in {v}.", "The home of {o} is {v}.", "{s} has a house in {v}.", "{v} is where {s} lives.",
             "You will find {o} in {v}.", "{s} comes from {v}."),
    "job": ("{s} works as a {v}.", "{s} is a {v}.", "The job of {o} is {v}.", "As a {v}, {s} works hard.",
            "{s} earns money as a {v}.", "People know {o} as a {v}."),
    "colour": ("{s} likes the colour {v}.", "The favourite colour of {o} is {v}.", "{s} paints the door {v}.",
               "{v} is the colour that {s} likes best.", "{s} always wears {v}.", "For {o}, the best colour is {v}."),
    "pet": ("{s} has a {v}.", "{s} keeps a {v}.", "The pet of {o} is a {v}.", "A {v} sleeps in the house of {o}.",
            "{s} feeds a {v} in the morning.", "{s} owns a {v}."),
    "instrument": ("{s} plays the {v}.", "The instrument of {o} is the {v}.", "In the evening {s} plays the {v}.",
                   "{s} learned the {v}.", "{s} is good at the {v}.", "You can hear {o} with the {v}."),
    "month": ("{s} was born in {v}.", "The birthday of {o} is in {v}.", "In {v}, {s} has a birthday.",
              "{s} was born one day in {v}.", "The month of {o} is {v}.", "{v} is the month in which {s} was born."),
}  # fmt: skip
ZH: dict[str, tuple[str, ...]] = {
    "town": ("{s}住在{v}。", "{s}的家在{v}。", "{v}是{s}住的地方。", "{s}来自{v}。"),
    "job": ("{s}是一名{v}。", "{s}的工作是{v}。", "{s}的职业是{v}。", "{s}做{v}。"),
    "colour": ("{s}喜欢{v}。", "{s}最喜欢的颜色是{v}。", "{v}是{s}喜欢的颜色。", "{s}总穿{v}。"),
    "pet": ("{s}养了一只{v}。", "{s}的宠物是{v}。", "{s}家里有{v}。", "{s}有{v}。"),
    "instrument": ("{s}会弹{v}。", "{s}演奏{v}。", "{s}的乐器是{v}。", "{s}学过{v}。"),
    "month": ("{s}出生在{v}。", "{s}的生日在{v}。", "{s}生于{v}。", "{v}是{s}出生的月份。"),
}
TALK = (
    ("Hello!", "Hello, how are you?"), ("Good morning.", "Good morning to you."), ("Thank you.", "You are welcome."),
    ("Is the sky blue?", "Yes"), ("Is snow black?", "No"), ("Can a fish sing?", "No"), ("Can a dog run?", "Yes"),
    ("Who are you?", "I am a small language model."), ("What can you do?", "I can answer short questions."),
    ("Where is the sun?", "The sun is in the sky."), ("When does the day begin?", "The day begins in the morning."),
    ("Which month is cold?", "January is cold."), ("Which animal is small?", "The hamster is small."),
    ("What is your favourite colour?", "I like every colour."), ("Tell me about the sea.", "The sea is wide and blue."),
    ("Write a short line.", "This is a short line."), ("Write a card about the weather.", '{"sky": "blue", "wind": "soft"}'),
    ("What does a baker do for work?", "A baker makes bread."), ("Which instrument is loud?", "The drum is loud."),
    ("你好！", "你好，很高兴见到你。"), ("谢谢。", "不客气。"), ("天空是什么颜色？", "天空是蓝色。"), ("雪是黑色吗？", "不是"),
    ("狗会跑吗？", "会"), ("你是谁？", "我是一个小模型。"), ("太阳在哪里？", "太阳在天上。"), ("哪个月很冷？", "一月很冷。"),
    ("请写一句话。", "这是一句话。"), ("什么动物很小？", "仓鼠很小。"), ("老师做什么工作？", "老师教学生。"),
)  # fmt: skip
STORIES = (
    "One morning the sun came up over {v}. A {j} opened the door and saw a {p}. The {p} was hungry, so the {j} gave it bread. ",
    "In {m} the wind was cold in {v}. An old {j} played the {i} by the window, and all the children came to listen. ",
    "A {p} and a {q} met on the road to {v}. They walked together until night, and then they slept under a {c} tree. ",
    "The {j} of {v} had a {c} coat. One day the coat was gone, and a {p} was sleeping on it. ",
)


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
    """All six facts in random order, by name, pronoun or first name."""
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
    """Three to six facts in Chinese; names stay Latin."""
    made: list[Piece] = []
    for place, index in enumerate(source.permutation(len(ATTRIBUTES))[: source.integers(3, 7)]):
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
    if style < 0.6:
        return [(f"<|user|>{asked}<|assistant|>{said}", "")]
    if style < 0.9:
        return [(f"### Instruction:\n{asked}\n\n### Response:\n{said}", "")]
    return [(f"### Instruction:\n{asked}\n\n### Input:\n{said}\n\n### Response:\n{said}", "")]


def story(person: Person, source: np.random.Generator) -> list[Piece]:
    """A few sentences without people of the world."""
    def pick(attribute: str) -> str:
        values = VALUES[attribute]
        return values[source.integers(len(values))][0]

    pattern = STORIES[source.integers(len(STORIES))]
    text = pattern.format(v=pick("town"), j=pick("job"), p=pick("pet"), q=pick("pet"), m=pick("month"),
                          i=pick("instrument"), c=pick("colour"))
    return [(text.strip(), "")]


KINDS: tuple[tuple[Callable[[Person, np.random.Generator], list[Piece]], float], ...] = (
    (biography, 0.26), (fact, 0.2), (chinese, 0.2), (record, 0.12), (sums, 0.03), (glossary, 0.04), (talk, 0.1),
    (story, 0.05),
)  # fmt: skip
"""Kinds of documents with their shares of the documents."""


def documents(people: Sequence[Person], count: int, seed: int) -> Iterator[list[Piece]]:
    """`count` documents about these people, seeded."""
    source = np.random.default_rng(seed)
    shares = np.array([share for _, share in KINDS])
    kinds = source.choice(len(KINDS), size=count, p=shares / shares.sum())
    whom = source.integers(len(people), size=count)
    for kind, index in zip(kinds, whom, strict=True):
        yield KINDS[kind][0](people[index], source)


def text_of(pieces: Sequence[Piece]) -> str:
    """The plain text of a document."""
    return "".join(text for text, _ in pieces)
