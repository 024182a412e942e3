"""Labels of texts: encoded as rows of training are (long texts lose their middle), read as evaluation reads them.

A run with a head gives probabilities; one that scores label texts gives their shares among the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.types import Example, Row, Source, Turn
from luthier.serve.answers import TOKENIZING
from luthier.serve.schema import ApiError, Classify

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.serve.app import Server

TOKENS_AT_ONCE = 2048


def classify(server: Server, body: Classify) -> dict[str, Any]:
    """One entry a text: the label, the labels above one half (multi-label), or the value (regression)."""
    served = server.registry.get(body.model)
    adapted = served.labels
    if adapted is None:
        raise ApiError(400, f"{body.model} is no classification run", "wrong_endpoint", "model")
    texts = [body.input] if isinstance(body.input, str) else body.input
    return {
        "object": "list",
        "model": body.model,
        "data": [_entry(adapted, logits) for logits in _logits(adapted, texts, served.task)],
    }


def _logits(adapted: AdaptedModel, texts: list[str], task: int = 0) -> list[torch.Tensor]:
    """[labels] float64 of each text; `task` is the prefix of a multi-task library."""
    from dataclasses import replace

    from luthier.data.encode import encode
    from luthier.data.settings import DataSettings
    from luthier.engine.batch import from_rows

    any_label: Any = {"multi": (), "regression": 0.0}.get(adapted.problem, adapted.labels[0])
    place = Source("request", 0)
    asked = [Example(str(at), (Turn("user", text),), place, any_label) for at, text in enumerate(texts)]
    settings = DataSettings(train="request", max_length=adapted.max_length)
    tokenizer, stop = adapted.base.tokenizer, adapted.base.stop_ids[0]
    with TOKENIZING:
        options: dict[str, Any] = {"labels": adapted.labels, "stop_id": stop, "spoken": adapted.task.spoken}
        rows = encode(asked, adapted.template, tokenizer, settings, "classify", **options)
        if adapted.task.spoken:
            _ = adapted.label_ids  # made once, with the tokenizer to itself
    if len(rows) != len(texts):
        raise ApiError(400, f"a text does not fit {adapted.max_length} tokens", "context_length_exceeded", "input")
    parts = _parts([replace(row, task=task) for row in rows])
    return [one.double() for part in parts for one in adapted.row_logits(from_rows(part))]


def _parts(rows: Sequence[Row]) -> list[list[Row]]:
    """Neighbours that are computed at once: at most TOKENS_AT_ONCE tokens, so that memory stays bounded, and few
    forwards for many short texts."""
    parts: list[list[Row]] = []
    room = 0
    for row in rows:
        if not parts or len(row.input_ids) > room:
            parts.append([])
            room = TOKENS_AT_ONCE
        parts[-1].append(row)
        room -= len(row.input_ids)
    return parts


def _entry(adapted: AdaptedModel, logits: torch.Tensor) -> dict[str, Any]:
    if adapted.problem == "regression":
        return {"value": float(logits[0])}
    shares = torch.sigmoid(logits) if adapted.problem == "multi" else torch.softmax(logits, dim=-1)
    scores = dict(zip(adapted.labels, shares.tolist(), strict=True))
    best = {"label": max(scores, key=lambda name: scores[name])}
    chosen = {"labels": [name for name, share in scores.items() if share >= 0.5]} if adapted.problem == "multi" else {}
    return {**best, **chosen, "scores": scores}
