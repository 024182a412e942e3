"""Beam search belongs to transformers: a saved plain prefix under its `generate` finds what a plain search finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cells as battery
import models as tiny
import numpy as np
import pytest
import torch

from luthier.core.types import IGNORE, Row
from luthier.engine.batch import from_rows
from luthier.methods import METHODS
from luthier.models import forward

BEAMS, STEPS = 3, 5


@torch.no_grad()
def searched(base: Any, attached: Any, prompt: list[int]) -> list[int]:
    """The likeliest continuation that a beam of three finds: every beam whole and without a cache."""

    def as_batch(ids: list[int]) -> Any:
        return from_rows([Row("r", np.array(ids, np.int32), np.full(len(ids), IGNORE, np.int32))])

    virtual = attached.virtual(as_batch(prompt))
    beams: list[tuple[float, list[int]]] = [(0.0, list(prompt))]
    for _ in range(STEPS):
        grown = []
        for score, ids in beams:
            states = forward.hidden(base, as_batch(ids), virtual)
            shares = torch.log_softmax(forward.logits(base, states[-1:])[0].double(), -1)
            best = shares.topk(2 * BEAMS)
            grown += [(score + float(v), [*ids, int(i)]) for v, i in zip(best.values, best.indices, strict=True)]
        beams = sorted(grown, key=lambda pair: -pair[0])[:BEAMS]
    return beams[0][1][len(prompt) :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_saved_prefix_under_beam_search(kind: str, tmp_path: Path) -> None:
    """Through PeftModel and `generate(num_beams=3)`, prompt by prompt; the beam finds more than the greedy path."""
    from peft import PeftModel

    base = tiny.base(kind)
    attached = METHODS.parse({"name": "prefix", "length": 3}).attach(base, 0)
    battery.shake(attached)
    attached.save(tmp_path)
    stock = PeftModel.from_pretrained(tiny.base(kind).model, str(tmp_path)).eval()
    stock.generation_config.eos_token_id = None
    for prompt in ([5, 6, 7, 8], [20], [30, 31, 32]):
        ids = torch.tensor([prompt])
        made = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=BEAMS,
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert made[0, len(prompt) :].tolist() == searched(base, attached, prompt)
