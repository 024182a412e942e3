"""Which language a text is in, roughly: by script, and for the Latin script by its commonest words.

Enough to say "these rows are Chinese and this tokenizer was made for English"; not a linguist.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

LOOKED_AT = 400
"""Characters of a text that are looked at."""
_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
)
_FOREIGN = re.compile(r"[\u0370-\u1fff\u3040-\U0003ffff]")
"""A character of any of these scripts: most texts have none, and need no count of each."""
_LETTER = re.compile(r"[A-Za-z\u00c0-\u024f]")
_WORD = re.compile(r"[^\W\d_]+")
_STOP = {  # the commonest words, parted by spaces
    "en": "the of and to a in is that it for was on with are as be this by you not or what how from have i",
    "de": "der die das und ist nicht ein eine zu den mit von auf für im ich sie es wie dem",
    "fr": "le la les des et est un une du dans que pour qui sur pas au avec je vous ce",
    "es": "el los las de que y en un una por con para es se del como su no lo al",
    "pt": "o os as de que e em um uma por com para é se do da não no na como",
    "it": "il lo gli di che e un una per con è si del della non in sono come le i",
    "nl": "de het een en van is dat in niet op te zijn voor met die aan er ik maar wat",
}
_OF_WORD: dict[str, list[str]] = {}
for _language, _words in _STOP.items():
    for _one in _words.split():
        _OF_WORD.setdefault(_one, []).append(_language)
_KNOWN = frozenset(_OF_WORD)
ENGLISH = (
    "The town had two schools and a small library near the river. Every morning the children walked past the "
    "old mill, and in the evening their parents met in the square to talk about the weather, the price of "
    "bread, and what the newspaper said. What would you like to know about the people who lived there?"
)
"""A plain English paragraph: the measure for how well a tokenizer knows English."""
CJK = ("zh", "ja", "ko", "th")
CJK_LIMIT, OTHER_RATIO = 1.2, 2.0
"""Above 1.2 tokens a character (Chinese; a fitting tokenizer has 0.5 to 0.8), or above twice the English number
for alphabets, characters fall into bytes: slow, short-sighted, and often broken on output."""


def of_text(text: str) -> str:
    """Language code, or "other" (code, numbers, and what is too short to tell)."""
    part = text[:LOOKED_AT]
    if not part.isascii() and _FOREIGN.search(part):
        letters = len(_LETTER.findall(part))
        for name, pattern in _SCRIPTS:
            found = len(pattern.findall(part))
            if found and found * (4 if name in CJK else 2) > letters:
                return name
    votes: dict[str, int] = {}
    words = _WORD.findall(part.lower())
    for word in _KNOWN.intersection(words):
        times = words.count(word)
        for name in _OF_WORD[word]:
            votes[name] = votes.get(name, 0) + times
    if not votes:
        return "other"
    best = max(votes, key=lambda name: (votes[name], name == "en"))
    return best if votes[best] * 12 >= len(words) else "other"


def tokens_per_character(tokenizer: Any, texts: Sequence[str]) -> float:
    """Tokens divided by characters over these texts (at most LOOKED_AT characters of each)."""
    parts = [text[:LOOKED_AT] for text in texts]
    ids = tokenizer(parts, add_special_tokens=False)["input_ids"]
    return sum(map(len, ids)) / max(1, sum(map(len, parts)))


def unknown_share(tokenizer: Any, texts: Sequence[str]) -> float:
    """Share of tokens that are the unknown token: text that the model can neither see nor write."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return 0.0
    ids = tokenizer([text[:LOOKED_AT] for text in texts], add_special_tokens=False)["input_ids"]
    return sum(row.count(unknown) for row in ids) / max(1, sum(map(len, ids)))


def fits(language: str, number: float, english: float) -> bool:
    """Whether so many tokens a character are bearable for the language."""
    if language == "en":
        return True
    return number <= CJK_LIMIT if language in CJK else number <= OTHER_RATIO * english
