"""`train.lr=1e-3,1e-4 method.r=4,8` → every combination, each checked before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import LuthierError, Problem, RecipeError
from luthier.core.fingerprint import of_value

MOST_POINTS = 1000
_OPEN, _CLOSE = "[{(", "]})"


@dataclass(frozen=True)
class Point:
    """One combination: overrides as a recipe takes them, and the name of its run directory."""

    name: str
    overrides: tuple[str, ...]
    varied: dict[str, str]


def split_values(text: str) -> list[str]:
    """At commas that stand in no bracket and no quotation."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in _OPEN + _CLOSE:
            depth += 1 if sign in _OPEN else -1
        elif sign == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += sign
    return [part.strip() for part in parts]


def axes(words: Sequence[str]) -> dict[str, list[str]]:
    """key → its values. RecipeError for a word without =, an empty value, or a key or value given twice."""
    found: dict[str, list[str]] = {}
    problems = []
    for word in words:
        key, sign, text = word.partition("=")
        values = split_values(text)
        if not sign or not key:
            problems.append(Problem(f"{word!r} is no setting", remedy="write key.path=value1,value2"))
        elif key in found:
            problems.append(Problem("given twice", where=key, remedy="list all values behind one ="))
        elif not all(values):
            problems.append(Problem("an empty value", where=key, remedy="write null for nothing"))
        elif len(set(values)) < len(values):
            problems.append(Problem("a value stands there twice", where=key))
        else:
            found[key] = values
    if problems:
        raise RecipeError("the grid", problems=problems)
    return found


def points(recipe: Path, words: Sequence[str]) -> list[Point]:
    """Every combination in the order written, the last key changing fastest; all of them valid recipes."""
    from luthier.recipe import Recipe

    found = axes(words)
    count = 1
    for values in found.values():
        count *= len(values)
    if count > MOST_POINTS:
        raise RecipeError(f"{count} combinations", remedy=f"at most {MOST_POINTS}")
    made, problems = [], []
    for number, combination in enumerate(itertools.product(*found.values()), 1):
        chosen = dict(zip(found, combination, strict=True))
        overrides = tuple(f"{key}={value}" for key, value in chosen.items())
        varied = {key: value for key, value in chosen.items() if len(found[key]) > 1}
        try:
            Recipe.load(recipe, *overrides)
        except LuthierError as error:
            told = " ".join(overrides)
            problems += [Problem(f"{one.what} (with {told})", one.where, one.remedy) for one in error.problems]
        made.append(Point(f"{number:03}-{of_value(overrides)[:8]}", overrides, varied))
    if problems:
        raise RecipeError("some combinations are no valid recipe", problems=problems[:10])
    return made
