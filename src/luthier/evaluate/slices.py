"""Where it got better and where worse: the same comparison on parts of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from luthier.core.types import Example, Row
from luthier.evaluate.answers import example_of
from luthier.metrics.resample import paired
from luthier.metrics.scored import Scored
from luthier.metrics.words import words

SMALL = 30
"""Slices with fewer rows are marked: their numbers say little."""
MOST_TRAINING, CHARACTERS = 20_000, 4000
"""Training rows, and characters of a row, that the distance to the training set is measured with."""
SHOWN = 160
"""Characters of each turn of a row that is listed with its text."""
MOST = 40
"""Slices of one group that are listed, the largest first."""


def parts(
    rows: Sequence[Row], examples: Mapping[str, Example], lengths: np.ndarray, training: Sequence[Example] = ()
) -> dict[str, list[str]]:
    """group → the slice that each row is in: class, length, source file, language, task, augmentation parent, and
    distance to the training rows."""
    found = [example_of(rows[index].id, examples) for index in range(len(rows))]
    made: dict[str, list[str]] = {"length": _thirds(lengths)}
    made["class"] = ["" if e is None or not isinstance(e.label, str) else e.label for e in found]
    made["source"] = ["" if e is None else e.source.file for e in found]
    made["task"] = ["" if e is None else e.task or "" for e in found]
    made["augmented"] = ["" if e is None else ("yes" if e.parent else "no") for e in found]
    made["language"] = _languages(found)
    if len(training):
        made["distance"] = _distances(found, training)
    return {group: names for group, names in made.items() if len(set(names)) > 1}


def _languages(examples: Sequence[Example | None]) -> list[str]:
    from luthier.data.language import of_text

    return ["" if e is None else of_text(" ".join(turn.text for turn in e.turns)[:2000]) for e in examples]


def _distances(examples: Sequence[Example | None], training: Sequence[Example]) -> list[str]:
    """near, middle, far: thirds of the share of a row's word pairs that no training row has."""
    places = np.unique(np.linspace(0, len(training) - 1, min(len(training), MOST_TRAINING)).astype(int))
    known = {pair for index in places.tolist() for pair in _pairs(training[index])}
    shares = np.array([_new(_pairs(example), known) if example else 1.0 for example in examples])
    low, high = np.quantile(shares, [1 / 3, 2 / 3])
    names = (f"near (up to {low:.0%} new)", "middle", f"far (over {high:.0%} new)")
    if low == high:
        return [names[0] if share <= low else names[2] for share in shares]
    return [names[0] if share <= low else names[1] if share <= high else names[2] for share in shares]


def _pairs(example: Example) -> set[tuple[str, str]]:
    listed = words(" ".join(turn.text for turn in example.turns)[:CHARACTERS])
    return set(pairwise(listed)) or {(word, "") for word in listed}


def _new(pairs: set[tuple[str, str]], known: set[tuple[str, str]]) -> float:
    return sum(pair not in known for pair in pairs) / len(pairs) if pairs else 0.0


def _thirds(lengths: np.ndarray) -> list[str]:
    """short, middle, long, with their bounds in tokens."""
    if not len(lengths):
        return []
    low, high = (int(edge) for edge in np.quantile(lengths, [1 / 3, 2 / 3], method="nearest"))
    if low == high:
        return [f"up to {low} tokens" if n <= low else f"over {low} tokens" for n in lengths.tolist()]
    names = (f"up to {low} tokens", f"{low + 1} to {high} tokens", f"over {high} tokens")
    return [names[0] if n <= low else names[1] if n <= high else names[2] for n in lengths.tolist()]


def compare(
    groups: Mapping[str, Sequence[str]], base: Scored, tuned: Scored, metric: str, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """group → slice → {"rows", "metric", "base", "tuned", "difference", "small"}."""
    made: dict[str, dict[str, Any]] = {}
    for group, names in groups.items():
        members: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            members.setdefault(name or "(none)", []).append(index)
        ordered = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST]
        made[group] = {
            name: {
                "rows": len(places),
                "metric": metric,
                "base": {metric: base.take(places).value},
                "tuned": {metric: tuned.take(places).value},
                "difference": paired(base.take(places), tuned.take(places), resamples, seed),
                "small": len(places) < SMALL,
            }
            for name, places in ordered
        }
    return made


def extremes(
    rows: Sequence[Row],
    examples: Sequence[Example | None],
    base: np.ndarray,
    tuned: np.ndarray,
    most: int = 10,
) -> dict[str, Any]:
    """Rows with the largest win, the largest loss, and the highest remaining loss, by mean loss of the row; each with
    its source and the beginning of its text."""
    change = tuned - base

    def listed(order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "id": rows[i].id,
                "source": "" if (one := examples[i]) is None else str(one.source),
                "text": _shown(one),
                "base_loss": float(base[i]),
                "tuned_loss": float(tuned[i]),
                "change": float(change[i]),
            }
            for i in order.tolist()
        ]

    wins = [i for i in np.argsort(change, kind="stable")[:most] if change[i] < 0]
    worse = [i for i in np.argsort(-change, kind="stable")[:most] if change[i] > 0]
    return {
        "wins": listed(np.array(wins, dtype=int)),
        "losses": listed(np.array(worse, dtype=int)),
        "hardest": listed(np.argsort(-tuned, kind="stable")[:most]),
        "better": int((change < 0).sum()),
        "worse": int((change > 0).sum()),
    }


def _shown(example: Example | None) -> str:
    """Prompt → answer (or label), each cut."""
    if example is None:
        return ""
    turns = [" ".join(turn.text.split()) for turn in example.turns]
    parts = [text if len(text) <= SHOWN else text[:SHOWN].rstrip() + " …" for text in turns if text]
    return " → ".join([*parts, *([] if example.label is None else [str(example.label)])])
