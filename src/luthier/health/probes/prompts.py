"""Prompt drift: how far trained prompt embeddings went from the words that the model knows.

A prompt that begins as words has a drift of 0; unlike words, it may lie anywhere (Lester et al. 2021, section 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.core.types import Row
from luthier.engine.batch import from_rows

LISTED = 20


@torch.no_grad()
def drift(adapted: Any, rows: Sequence[Row]) -> dict[str, Any] | None:
    """{"drift", "norm_ratio", "nearest"}; None for methods without prompt embeddings.

    drift: median over virtual tokens of 1 − the highest cosine to a word's embedding. norm_ratio: their median norm by
    that of all words. nearest: the likest word of each virtual token (of the first row's prompt, where rows differ).
    """
    if not adapted.attached.virtual_tokens or not rows:
        return None
    made = adapted.attached.virtual(from_rows([rows[0]]).to(adapted.device))
    if made is None or made.prompt is None:
        return None
    words = adapted.base.model.get_input_embeddings().weight.float()
    prompt = made.prompt.float().reshape(-1, words.shape[1])
    normal = torch.nn.functional.normalize
    cosine, place = (normal(prompt, dim=-1) @ normal(words, dim=-1).T).max(dim=-1)
    names = adapted.base.tokenizer.convert_ids_to_tokens(place.tolist())
    listed = [{"word": str(name), "cosine": float(value)} for name, value in zip(names, cosine, strict=True)]
    ratio = float(prompt.norm(dim=-1).median() / words.norm(dim=-1).median().clamp_min(1e-12))
    return {"drift": float((1 - cosine).median()), "norm_ratio": ratio, "nearest": listed[:LISTED]}
