"""What flows through the corridor: Turn → Example → Row. (A Batch holds tensors: `engine.batch`.)

raw rows ─format─► Example ─split─► ─augment─► ─template + tokenizer─► Row ─pack─► Batch
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IGNORE = -100
"""Label of a token that is not trained (the convention of torch's cross entropy)."""

Label = str | float | tuple[str, ...]
"""Class name, regression value, or the class names of a multi-label row."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `role` is system | user | assistant | tool | text (text: a plain document).

    `context` is alpaca's "input": material that belongs to the instruction but is not it.
    `train` is None for the default (assistant and text turns are trained, others are not).
    """

    role: str
    text: str
    context: str = ""
    train: bool | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row came from: the file and its 1-based line (or row number where lines mean nothing).

    `row` is the 1-based number of the row in the file where the line does not tell it (JSON on one line), else 0.
    """

    file: str
    line: int
    row: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line} (row {self.row})" if self.row else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Example:
    """One row of data after its format was understood and before any tokenizer saw it."""

    id: str
    turns: tuple[Turn, ...]
    source: Source
    label: Label | None = None
    group: str | None = None
    parent: str | None = None
    split: str | None = None
    task: str | None = None
    rejected: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns before the last trained one: what a model is asked with."""
        return self.turns[:-1] if self.turns and self.turns[-1].role == "assistant" else self.turns

    @property
    def reference(self) -> str:
        """The last answer, or the empty string."""
        return self.turns[-1].text if self.turns and self.turns[-1].role == "assistant" else ""


@dataclass(frozen=True, slots=True)
class Spoken:
    """How a label becomes the answer to its text: the text follows `instruction`, or is the whole prompt."""

    instruction: str | None = None

    def turns(self, example: Example) -> tuple[Turn, ...]:
        """The conversation whose last answer is the label."""
        turns = example.turns
        if self.instruction is not None and turns:
            turns = (*turns[:-1], Turn("user", self.instruction, turns[-1].text))
        return (*turns, Turn("assistant", str(example.label)))


@dataclass(frozen=True, slots=True)
class Row:
    """One example as token ids.

    `input_ids` [n] int32; `labels` [n] int32, unshifted: `labels[i]` is `input_ids[i]` where the token is
    trained and IGNORE elsewhere (the shift by one happens in the batch). `target` is the class index, the
    regression value, or a 0/1 vector for classification rows. `task` indexes multi-task prefixes.
    """

    id: str
    input_ids: np.ndarray
    labels: np.ndarray
    target: float | int | tuple[int, ...] | None = None
    task: int = 0

    @property
    def trained_tokens(self) -> int:
        """How many tokens carry loss. The first token has no predecessor and never counts."""
        return int((self.labels[1:] != IGNORE).sum())
