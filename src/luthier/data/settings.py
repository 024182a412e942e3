"""`data:` of the recipe, and one entry of `augment:`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.core.settings import Settings


class SplitSettings(Settings):
    """How rows are divided before anything else touches them."""

    validation: float | int = Field(0.1, ge=0)
    """Share of the rows (below 1) or a number of rows."""
    test: float | int = Field(0.1, ge=0)
    """Share of the rows (below 1) or a number of rows; never used for choosing."""
    seed: int = 42
    group: str = "auto"
    """auto: rows of one document, conversation, person or near-duplicate cluster stay together; a column name; none."""
    stratify: str = "auto"
    """auto: by class for classification; a column name; none."""
    by_time: str | None = None
    """A date column: the newest rows become test, the ones before validation."""


class SourceSettings(Settings):
    """One of several data sources."""

    path: str
    weight: float = Field(1.0, gt=0)
    """Rows are repeated or thinned to this weight (training only)."""
    format: str | None = None
    task: str | None = None
    """Name of the task these rows belong to (multi-task prefixes)."""


class DataSettings(Settings):
    """Which rows, and how they are read, divided and encoded."""

    train: str | SourceSettings | list[str | SourceSettings] = "builtin"
    """json, jsonl, csv, tsv, parquet, txt (also .gz/.zst), a folder or glob, a hub dataset, builtin or builtin:NAME;
    a list mixes."""
    validation: str | SourceSettings | list[str | SourceSettings] | None = None
    """A file of its own instead of a split; several, or one of a task, as in `train` (weights mean nothing here)."""
    test: str | SourceSettings | list[str | SourceSettings] | None = None
    """A file of its own instead of a split; several, or one of a task, as in `train` (weights mean nothing here)."""
    max_rows: int | None = Field(None, gt=0)
    """Use only the first N rows (after the split's shuffle)."""
    format: str = "auto"
    columns: dict[str, str] = Field(default_factory=dict)
    """Rename columns, wanted name first: {instruction: query}."""
    template: str = "auto"
    """alpaca | chat (the tokenizer's own) | plain | …; auto: chat where the tokenizer has a template, else alpaca."""
    max_length: int = Field(512, gt=1)
    truncate: Literal["prompt", "drop"] = "prompt"
    """Rows that are too long: cut the prompt (never the answer), or drop the row; both are counted."""
    stride: int = Field(0, ge=0)
    """Overlap in tokens between windows of a long plain-text document."""
    loss_on: Literal["all_answers", "last_answer", "everything"] = "all_answers"
    """Which turns carry loss."""
    encoding: str = "utf-8"
    """Only another encoding when it is named; never guessed."""
    on_error: Literal["stop", "skip"] = "stop"
    """A row that cannot be understood: stop, or skip it (counted and listed)."""
    max_unsupervised: float = Field(0.05, ge=0, le=1)
    """Stop when more than this share of rows has no trained token; such rows are never fed to the loss."""
    cache: bool = True
    """Keep encoded rows on disk, keyed by rows, template, tokenizer and settings."""
    canaries: int = Field(0, ge=0, le=1000)
    """Made-up rows planted into the training split, to measure what the model remembers of single rows."""
    split: SplitSettings = SplitSettings()


AugmentSpec = str | dict[str, Any]
"""`synonyms` or `{name: synonyms, share: 0.3}`."""
