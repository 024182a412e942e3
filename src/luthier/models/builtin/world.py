"""A little world: 320 people with six facts each, told in English and Chinese. Seeded; the same everywhere.

The base model reads these facts in its pre-training text; the built-in instruction sets ask for them. So tuning
means bringing out knowledge that stands in the weights (after Allen-Zhu & Li, "Physics of Language Models 3.1",
arXiv:2309.14316), which a randomly initialised model cannot do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SEED = 7
PEOPLE = 320

FIRST = (
    "Ada Alba Anton Bela Boris Bruno Cara Celia Clara Dario Delia Dora Edgar Elena Elias Emil Erik Fabian Felix Flora "
    "Frida Georg Greta Hanna Hector Helga Hugo Ida Igor Ines Irma Ivan Jakob Jana Jonas Julia Karin Karl Katja Klara "
    "Lara Laura Leo Lida Lina Lorenz Lotte Lucas Magda Malte Marco Marta Max Mila Mona Nadja Nils Nora Olga Oskar "
    "Otto Paula Pavel Petra Rafael Rita Robert Rosa Ruben Selma Simon Sofia Stella Tanja Theo Tilda Tobias Vera Viktor Wanda"
).split()
LAST = (
    "Adler Amsel Arndt Bach Bader Becker Berg Bock Brandt Braun Busch Cramer Decker Dietz Dorn Eberle Eckert Ehlers "
    "Engel Ernst Falk Feld Fink Fischer Frank Fuchs Gerber Graf Gross Haas Hahn Hartmann Heim Heller Herzog Hirsch "
    "Hoffmann Holz Huber Jahn Jung Kaiser Keller Kern Klein Koch Kolb Kraft Kramer Kraus Krug Kuhn Lang Lehmann Lenz "
    "Lindner Lorch Ludwig Maier Mann Marx Maurer Meyer Moser Nagel Neumann Noll Ott Peters Pfeiffer Pohl Rauch Reich "
    "Reuter Richter Ritter Roth Sander Sauer Schenk Schmitt Schubert Schwarz Seidel Sommer Stark Stein Stolz Sturm "
    "Thiel Ulrich Vogel Wagner Walter Weber Wolf Zander Ziegler"
).split()

VALUES: dict[str, list[tuple[str, str]]] = {
    "town": [
        ("Greenby", "青镇"), ("Oakford", "橡城"), ("Riverton", "河湾"), ("Stonefield", "石田"), ("Marwick", "马维"),
        ("Eastholm", "东岛"), ("Windport", "风港"), ("Copperhill", "铜山"), ("Lakewood", "湖林"), ("Ashbridge", "灰桥"),
        ("Norwell", "北井"), ("Silverton", "银城"), ("Fernvale", "蕨谷"), ("Saltmarsh", "盐沼"), ("Highcliff", "高崖"),
        ("Millbrook", "磨溪"), ("Thornbury", "荆堡"), ("Westmoor", "西原"), ("Redhaven", "红湾"), ("Goldcrest", "金顶"),
    ],
    "job": [
        ("baker", "面包师"), ("doctor", "医生"), ("painter", "画家"), ("farmer", "农民"), ("teacher", "老师"),
        ("carpenter", "木匠"), ("sailor", "水手"), ("lawyer", "律师"), ("nurse", "护士"), ("tailor", "裁缝"),
        ("cook", "厨师"), ("miner", "矿工"), ("potter", "陶工"), ("gardener", "园丁"), ("printer", "印刷工"), ("clerk", "职员"),
    ],
    "colour": [
        ("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("yellow", "黄色"), ("black", "黑色"), ("white", "白色"),
        ("purple", "紫色"), ("orange", "橙色"), ("brown", "棕色"), ("grey", "灰色"), ("pink", "粉色"), ("silver", "银色"),
    ],
    "pet": [
        ("cat", "猫"), ("dog", "狗"), ("horse", "马"), ("parrot", "鹦鹉"), ("rabbit", "兔子"), ("goat", "山羊"),
        ("turtle", "乌龟"), ("hamster", "仓鼠"), ("canary", "金丝雀"), ("snake", "蛇"), ("pony", "小马"), ("goldfish", "金鱼"),
    ],
    "instrument": [
        ("flute", "长笛"), ("piano", "钢琴"), ("violin", "小提琴"), ("drum", "鼓"), ("guitar", "吉他"), ("harp", "竖琴"),
        ("trumpet", "小号"), ("cello", "大提琴"), ("clarinet", "单簧管"), ("organ", "管风琴"), ("banjo", "班卓琴"),
        ("accordion", "手风琴"),
    ],
    "month": [
        ("January", "一月"), ("February", "二月"), ("March", "三月"), ("April", "四月"), ("May", "五月"), ("June", "六月"),
        ("July", "七月"), ("August", "八月"), ("September", "九月"), ("October", "十月"), ("November", "十一月"),
        ("December", "十二月"),
    ],
}
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
    """The population, in a fixed order. `shuffled` gives the same names other facts: a control."""
    source = np.random.default_rng(seed)
    pairs = source.permutation(len(FIRST) * len(LAST))[:count]
    made = []
    facts = [[int(source.integers(len(VALUES[name]))) for name in ATTRIBUTES] for _ in pairs]
    if shuffled:
        order = np.random.default_rng(seed + 1).permutation(count)
        facts = [facts[index] for index in order]
    for pair, known in zip(pairs, facts, strict=True):
        first, last = FIRST[pair // len(LAST)], LAST[pair % len(LAST)]
        made.append(Person(first, last, first[-1] in "ae" and first not in ("Luca",), tuple(known)))
    return made
