"""samples.txt: what was asked, the reference, the base's answer and the tuned model's, as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.report.words import plain, show

PARTS = ("prompt", "reference", "base", "tuned", "sampled")


def as_text(samples: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> str:
    """One block a sample. Every line of foreign text is indented by a bar, so that it cannot look like ours."""
    if not samples:
        return texts["samples.empty"] + "\n"
    return "\n".join(_block(number, sample, texts) for number, sample in enumerate(samples, 1))


def _block(number: int, sample: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    lines = [f"── {number} ── {show(sample.get('source') or sample.get('row') or sample.get('id'))}".replace("\n", " ")]
    for part in PARTS:
        if part in sample:
            lines.append(f"{texts[f'samples.{part}']}:")
            lines += [f"  │ {line}" for line in text_of(sample[part]).split("\n")]
    return "\n".join(lines) + "\n"


def text_of(value: Any) -> str:
    """The text of a sample's part: a string, or turns, or an object with `text`."""
    if isinstance(value, Mapping):
        return text_of(value.get("text", value.get("content", "")))
    if isinstance(value, list | tuple):
        return "\n".join(text_of(item) for item in value)
    return "" if value is None else plain(value)
