"""What a base knows of the world: facts at the end of a sentence (cloze), and the loss on text it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from luthier.models.builtin.corpus import EN, ZH, documents
from luthier.models.builtin.tokens import encode
from luthier.models.builtin.world import ATTRIBUTES, Person, people

HELD_OUT_SEED = 5
"""No training text uses it: those seeds begin at 300,000."""


def cloze(model: Any, tokenizer: Any, known: Sequence[Person], language: str = "en", count: int = 500) -> float:
    """Share of `count` drawn facts whose value is the most probable continuation, token by token."""
    source = np.random.default_rng(HELD_OUT_SEED)
    right = 0
    for _ in range(count):
        person = known[int(source.integers(len(known)))]
        attribute = ATTRIBUTES[source.integers(len(ATTRIBUTES))]
        patterns = [p for p in (EN if language == "en" else ZH)[attribute] if p.index("{v}") > len(p) // 2]
        pattern = patterns[source.integers(len(patterns))]
        before = pattern[: pattern.index("{v}")].format(s=person.name, o=person.name)
        value = person.value(attribute, language)
        if before.endswith(" "):
            before, value = before[:-1], " " + value
        prompt = tokenizer(before)["input_ids"]
        answer = tokenizer(value, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        right += logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
    return right / count


def held_out_loss(model: Any, tokenizer: Any, count: int = 400) -> float:
    """Mean negative log-likelihood per token, in nats, of documents of another seed."""
    total, tokens = 0.0, 0
    ids, _ = encode(tokenizer.backend_tokenizer, list(documents(people(), count, HELD_OUT_SEED)))
    for row in ids:
        window = torch.as_tensor(row.astype(np.int64))[None]
        with torch.no_grad():
            logits = model(input_ids=window[:, :-1]).logits
        total += float(torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum"))
        tokens += window.shape[1] - 1
    return total / tokens
