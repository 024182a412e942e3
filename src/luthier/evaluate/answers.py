"""Answers by generation: batched greedy ones for metrics, greedy and sampled ones for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.core.types import Example, Turn
from luthier.evaluate.settings import SampleSettings
from luthier.metrics import METRICS
from luthier.models import decode

AUTO = ("exact_match", "rouge1", "rougeL", "chrf", "distinct2", "length_ratio")
CONTINUED_WORDS = 12


@dataclass(frozen=True)
class Answer:
    """Text, and whether the model stopped by itself."""

    text: str
    finish: str


def prompt_of(example: Example) -> tuple[Turn, ...]:
    """The turns before the answer; of a document its first words."""
    if example.turns and example.turns[0].role == "text":
        text = example.turns[0].text
        words = text.split(" ")
        start = " ".join(words[:CONTINUED_WORDS]) if len(words) > CONTINUED_WORDS else text[: max(8, len(text) // 3)]
        return (Turn("text", start),)
    return example.prompt


def answer(
    adapted: Any, examples: Sequence[Example], max_new_tokens: int, seed: int, temperature: float = 0.0
) -> list[Answer]:
    """One answer an example, all in batches; prompts that leave no room are cut at their beginning."""
    base = adapted.base
    room = base.anatomy.window - adapted.attached.virtual_tokens - 2
    prompts = []
    for example in examples:
        ids = adapted.prompt_ids(prompt_of(example))
        most = max(8, min(room - min(max_new_tokens, room // 2), len(ids)))
        prompts.append(ids[:1] + ids[len(ids) - most + 1 :] if len(ids) > most else ids)
    made = decode.generate(
        adapted, prompts, max_new_tokens=max_new_tokens, stop_ids=base.stop_ids, temperature=temperature, seed=seed
    )
    return [
        Answer(decode.text_of(base.tokenizer, ids, one.ids).strip("\n"), one.finish)
        for ids, one in zip(prompts, made, strict=True)
    ]


def text_scores(
    predictions: Sequence[str], references: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """name → scores by row. `auto` adds number and JSON checks where the references ask for them."""
    chosen = list(AUTO if names is None else names)
    if names is None:
        if np.mean([r.strip().startswith(("{", "[")) for r in references]) > 0.5:
            chosen.append("json_valid")
        if np.mean([any(c.isdigit() for c in r) for r in references]) > 0.9:
            chosen.append("number_match")
    return {name: np.asarray(METRICS.get(name)(predictions, references), dtype=float) for name in chosen}


def sample_texts(
    adapted: Any, examples: Sequence[Example], settings: SampleSettings, seed: int
) -> list[dict[str, Any]]:
    """The report's samples: base and tuned beside the reference, greedy, and one seeded draw."""
    chosen = [examples[i] for i in range(min(settings.count, len(examples)))]
    if not chosen:
        return []
    tuned = answer(adapted, chosen, settings.max_new_tokens, seed)
    sampled = (
        answer(adapted, chosen, settings.max_new_tokens, seed, settings.temperature) if settings.temperature else None
    )
    with adapted.off():
        base = answer(adapted, chosen, settings.max_new_tokens, seed)
    return [
        {
            "row": example.id,
            "source": str(example.source),
            "prompt": "\n".join(t.text + (f"\n{t.context}" if t.context else "") for t in prompt_of(example)),
            "reference": example.reference or _rest(example),
            "base": base[i].text,
            "tuned": tuned[i].text,
            "sampled": sampled[i].text if sampled else None,
            "temperature": settings.temperature,
            "base_stopped": base[i].finish == "stop",
            "tuned_stopped": tuned[i].finish == "stop",
        }
        for i, example in enumerate(chosen)
    ]


def _rest(example: Example) -> str:
    return example.turns[0].text[len(prompt_of(example)[0].text) :][:1000] if example.turns else ""
