"""What the texts say, over all rows: languages, leaked data, broken characters, answers that are no answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import Problem
from luthier.core.types import Example
from luthier.data import language, privacy

LISTED = 200
SAMPLED = 200
NO_ANSWERS = frozenset({"none", "nan", "null", "n/a", "na", "undefined", "nil", "#n/a", "[]", "{}"})
_MOJIBAKE = re.compile(
    "\ufffd|Ã[\u0080-\u00bf]|â€[\u0080-\u02ff\u2018-\u2122]|Â[\u00a0-\u00bf]|ï¿½|锟斤拷|\u00e5[\u0080-\u00bf]{2}"
)
_PLACEHOLDER = re.compile(r"\{\{ ?[\w.]+ ?\}\}|\[(?:YOUR|INSERT)[ _][A-Z _]+\]|<INSERT[^>]*>")
_LIST = re.compile(r"^\[(['\"]).*\1\]$", re.DOTALL)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass
class Texts:
    """Findings by kind, each with its count and the first LISTED rows."""

    languages: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def note(self, kind: str, row: Example, shown: str = "") -> None:
        """One finding in one row."""
        self.counts[kind] += 1
        listed = self.rows.setdefault(kind, [])
        if len(listed) < LISTED:
            listed.append({"row": row.id, "where": str(row.source), **({"shown": shown} if shown else {})})


def scan(parts: Iterable[Sequence[Example]]) -> Texts:
    """One pass over all rows of all sides."""
    found = Texts()
    for part in parts:
        for row in part:
            _row(row, found)
    return found


def _row(row: Example, found: Texts) -> None:
    said = [text for turn in row.turns for text in (turn.text, turn.context) if text]
    whole = "\n".join(said)
    name = language.of_text(whole)
    found.languages[name] += 1
    sample = found.samples.setdefault(name, [])
    if len(sample) < SAMPLED:
        sample.append(whole[: language.LOOKED_AT])
    for kind, shown in dict(privacy.find(whole)).items():
        found.note(kind, row, shown)
    if not whole.isascii() and _MOJIBAKE.search(whole):
        found.note("broken characters", row)
    if ("{{" in whole or "[" in whole or "<INSERT" in whole) and _PLACEHOLDER.search(whole):
        found.note("unfilled placeholder", row)
    if _CONTROL.search(whole):
        found.note("control character", row)
    answer = row.reference.strip()
    if answer and len(answer) < 12 and answer.lower() in NO_ANSWERS:
        found.note("answer that is no answer", row, answer)
    elif answer.startswith("[") and _LIST.match(answer):
        found.note("answer that is a printed list", row)


def manifest(found: Texts, tokenizer: Any) -> tuple[dict[str, Any], list[Problem]]:
    """Languages with the tokenizer's fit, findings, and the warnings that follow."""
    total = sum(found.languages.values()) or 1
    english = language.tokens_per_character(tokenizer, [language.ENGLISH])
    fit, warnings = {}, []
    for name, count in found.languages.most_common():
        texts = found.samples[name]
        number = language.tokens_per_character(tokenizer, texts)
        unknown = language.unknown_share(tokenizer, texts)
        fit[name] = {
            "rows": count,
            "share": round(count / total, 4),
            "tokens_per_character": round(number, 3),
            "times_english": round(number / english, 2) if english else None,
            "unknown_share": round(unknown, 4),
        }
        if count >= max(3, 0.02 * total) and name != "other":
            warnings += _misfit(name, number, english, unknown)
    facts = {
        "language": {"english_tokens_per_character": round(english, 3), "found": fit},
        "findings": {kind: {"rows": found.counts[kind], "listed": found.rows[kind]} for kind in sorted(found.rows)},
    }
    return facts, warnings + _findings(found)


def _misfit(name: str, number: float, english: float, unknown: float) -> list[Problem]:
    where, found = f"language {name}", []
    if unknown > 0.01:
        what = f"{unknown:.0%} of the tokens are unknown to the tokenizer: the model can neither read nor write them"
        found.append(Problem(what, where, "use a model that was trained on this language"))
    if not language.fits(name, number, english):
        what = f"the tokenizer needs {number:.2f} tokens a character here, for English {english:.2f}"
        found.append(Problem(what, where, "it was not made for this language; expect slow and broken output"))
    return found


_REMEDIES: Mapping[str, str] = {
    "broken characters": "the text was decoded wrongly once; fetch it again, or set data.encoding",
    "unfilled placeholder": "fill in or remove the placeholders; the model will say them",
    "control character": "remove them, unless they are meant",
    "answer that is no answer": "a missing value was written as text; remove the rows",
    "answer that is a printed list": "a list was written as text; take the text out of it",
}


def _findings(found: Texts) -> list[Problem]:
    warnings = []
    for kind, count in found.counts.most_common():
        first = ", ".join(item["where"] for item in found.rows[kind][:3])
        remedy = _REMEDIES.get(kind, "remove or replace them: models repeat what they were trained on")
        some = "1 row" if count == 1 else f"{count} rows"
        seem = "seems" if count == 1 else "seem"
        what = f"{some} with: {kind}" if kind in _REMEDIES else f"{some} that {seem} to hold: {kind}"
        warnings.append(Problem(what, first, remedy))
    return warnings
