"""`evaluate:` of the recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.core.settings import Settings


class SampleSettings(Settings):
    """Texts that are generated for the report."""

    count: int = Field(5, ge=0)
    max_new_tokens: int = Field(200, gt=0)
    temperature: float = Field(0.7, ge=0)
    """Of the sampled answer that is shown beside the greedy one; 0 leaves it out."""


class EvaluateSettings(Settings):
    """What is measured at the end, on the test split (validation where there is no test)."""

    metrics: list[str] | Literal["auto"] = "auto"
    samples: SampleSettings = SampleSettings.model_validate({})
    generate_rows: int = Field(100, ge=0)
    """Rows that are answered by generation for text metrics (exact match, ROUGE …); 0: none."""
    bootstrap: int = Field(1000, ge=100)
    """Resamples of the paired bootstrap."""
    batch_tokens: int = Field(8192, gt=0)
    guard: list[str] = Field(default_factory=list)
    """Files of general text that the tuned model must not forget; the built-in set for the built-in base."""
