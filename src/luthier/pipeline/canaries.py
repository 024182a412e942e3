"""Canaries of a run: whether they make sense here, their rows, and the file that names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core import atomic
from luthier.core.errors import DataError, RecipeError
from luthier.core.rundir import RunDir
from luthier.core.types import Example, Row
from luthier.data import canaries as drawing
from luthier.data import columns
from luthier.recipe import Recipe

KEY = "data.canaries"
Encode = Callable[[Sequence[Example]], Any]


@dataclass(frozen=True)
class Planted:
    """What was drawn, and the encoded rows of both kinds."""

    drawn: drawing.Canaries
    planted: Sequence[Row]
    controls: Sequence[Row]

    def as_json(self) -> dict[str, Any]:
        """data/canaries.json"""
        parts = {"planted": self.drawn.planted, "controls": self.drawn.controls}
        listed = {kind: [{"id": one.id, "text": text_of(one)} for one in rows] for kind, rows in parts.items()}
        return {"language": self.drawn.language, **listed}


def text_of(example: Example) -> str:
    """What the row says, in one line."""
    return " → ".join(turn.text for turn in example.turns)


def refuse(recipe: Recipe, task: Any) -> None:
    """RecipeError where a canary could not tell anything."""
    from luthier.methods import METHODS

    if not recipe.data.canaries:
        return
    why = None
    if task.has_head:
        why = "a canary is a text to be remembered, and classes are no texts: there is nothing it could be told by"
    elif len(getattr(METHODS.parse(recipe.method), "tasks", ())) > 1:
        why = "every row of this method belongs to one of its tasks, and a canary to none"
    if why:
        raise RecipeError(why, where=KEY, remedy=f"{KEY}: 0; the gap to held-out rows is measured without canaries")


def refuse_unmeasured(recipe: Recipe) -> None:
    """RecipeError for canaries that are planted in an earlier stage and forgotten in the last one."""
    counts = [recipe.at_stage(index).data.canaries for index in range(len(recipe.stages))]
    if any(counts) and not counts[-1]:
        what = "canaries are measured after the last stage, which plants none"
        raise RecipeError(what, where=KEY, remedy="plant them in the last stage too")


def draw(recipe: Recipe, task: Any, training: Sequence[Example], encode: Encode) -> Planted | None:
    """The canaries of this recipe and their rows; None without any.

    DataError where a row does not fit, or the tokenizer cannot tell two of them apart.
    """
    if not recipe.data.canaries:
        return None
    drawn = drawing.draw(recipe.data.canaries, task.name, training, recipe.seed)
    examples = [*drawn.planted, *drawn.controls]
    encoded = encode(columns.of(examples))
    rows = [encoded[i] for i in range(len(encoded))]
    names = [row.id.partition("#")[0] for row in rows]  # a document's only window is its name and #0
    if names != [example.id for example in examples] or encoded.cut.get("prompt_cut"):
        what = f"canaries do not fit {recipe.data.max_length} tokens"
        raise DataError(what, where=KEY, remedy="raise data.max_length, or data.canaries: 0")
    if len({row.input_ids.tobytes() for row in rows}) < len(rows):
        what = "the tokenizer cannot tell the canaries apart: it does not know their characters"
        raise DataError(what, where=KEY, remedy="another base model, or data.canaries: 0")
    return Planted(drawn, rows[: len(drawn.planted)], rows[len(drawn.planted) :])


def write(run: RunDir, planted: Planted | None) -> None:
    """data/canaries.json, so that the secrets can be told from the user's rows."""
    if planted is not None:
        atomic.write_json(run.canaries, planted.as_json())
