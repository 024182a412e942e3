"""New training rows from old ones: only what the user says is changed, never answers, labels, numbers or markers.

Originals stay; each new row names its parent; its randomness comes from (seed, epoch, row id), so the order of
rows, workers and resumes change nothing. Validation and test rows never come here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.seeding import generator
from luthier.core.types import Example, Turn
from luthier.data import columns
from luthier.data.augment import AUGMENTERS


@dataclass(frozen=True)
class Augmented:
    """`examples`: the originals, then the new ones. `report`: by augmenter, how many were made and could not be."""

    examples: columns.Examples
    report: dict[str, Any]


def augment(
    examples: Sequence[Example], specs: Sequence[Any], seed: int, epoch: int = 0, cache: Path | None = None
) -> Augmented:
    """Apply every augmenter of the recipe to the originals (not to each other's results).

    `cache` is a folder where augmenters that ask a model keep its answers.
    """
    originals = columns.of(examples)
    report: dict[str, Any] = {"originals": len(originals), "made": 0, "by": {}}
    members = [AUGMENTERS.parse(spec) for spec in specs]

    def children() -> Iterator[Example]:
        for number, member in enumerate(members):
            _remember(member, cache)
            counts: Counter[str] = Counter()
            for example in originals:
                source = generator(seed, "augment", epoch, number, example.id)
                for copy in range(_copies(member.params.ratio, source)):
                    child = _child(example, member, f"{example.id}~{number}.{epoch}.{copy}", source)
                    counts["made" if child else "unchanged"] += 1
                    if child:
                        yield child
            report["by"][f"{number}:{member.name}"] = {"made": counts["made"], "could_not_change": counts["unchanged"]}
            report["made"] += counts["made"]

    return Augmented(columns.extended(originals, children()), report)


def _remember(member: Any, cache: Path | None) -> None:
    if cache is not None and hasattr(member, "rewriter"):
        member.rewriter.remember(cache)
    for part in getattr(member, "parts", ()):
        _remember(part, cache)


def _copies(ratio: float, source: np.random.Generator) -> int:
    return int(ratio) + int(source.random() < ratio - int(ratio))


def _child(example: Example, member: Any, name: str, source: np.random.Generator) -> Example | None:
    """The example with its user turns changed; None where nothing changed."""
    turns = [_changed(turn, member, source) for turn in example.turns]
    if all(new is old for new, old in zip(turns, example.turns, strict=True)):
        return None
    return replace(example, id=name, turns=tuple(turns), parent=example.id)


def _changed(turn: Turn, member: Any, source: np.random.Generator) -> Turn:
    if turn.role not in ("user", "text"):
        return turn
    if turn.context.strip():  # the material is what varies; the instruction stays as it is
        context = member.change(turn.context, source)
        return turn if not context or context == turn.context else replace(turn, context=context)
    text = member.change(turn.text, source)
    return turn if not text or text == turn.text else replace(turn, text=text)
