"""Labels of texts: encoded as rows of training are (long texts lose their middle), read as evaluation reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from luthier.core.types import Example, Source, Turn
from luthier.serve.answers import TOKENIZING
from luthier.serve.schema import ApiError, Classify

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel
    from luthier.serve.app import Server


def classify(server: Server, body: Classify) -> dict[str, Any]:
    """One entry a text: the label, the labels above one half (multi-label), or the value (regression)."""
    adapted = server.registry.get(body.model).adapted
    if adapted is None or not adapted.task.has_head:
        raise ApiError(400, f"{body.model} is no classification run", "wrong_endpoint", "model")
    texts = [body.input] if isinstance(body.input, str) else body.input
    return {
        "object": "list",
        "model": body.model,
        "data": [_entry(adapted, logits) for logits in _logits(adapted, texts)],
    }


def _logits(adapted: AdaptedModel, texts: list[str]) -> list[torch.Tensor]:
    """[labels] float64 of each text."""
    from luthier.data.encode import encode
    from luthier.data.settings import DataSettings
    from luthier.engine.batch import from_rows

    any_label: Any = {"multi": (), "regression": 0.0}.get(adapted.problem, adapted.labels[0])
    place = Source("request", 0)
    asked = [Example(str(at), (Turn("user", text),), place, any_label) for at, text in enumerate(texts)]
    settings = DataSettings(train="request", max_length=adapted.max_length)
    tokenizer, stop = adapted.base.tokenizer, adapted.base.stop_ids[0]
    with TOKENIZING:
        rows = encode(asked, adapted.template, tokenizer, settings, "classify", labels=adapted.labels, stop_id=stop)
    if len(rows) != len(texts):
        raise ApiError(400, f"a text does not fit {adapted.max_length} tokens", "context_length_exceeded", "input")
    return [adapted.row_logits(from_rows([rows[at]]))[0].double() for at in range(len(texts))]


def _entry(adapted: AdaptedModel, logits: torch.Tensor) -> dict[str, Any]:
    if adapted.problem == "regression":
        return {"value": float(logits[0])}
    shares = torch.sigmoid(logits) if adapted.problem == "multi" else torch.softmax(logits, dim=-1)
    scores = dict(zip(adapted.labels, shares.tolist(), strict=True))
    best = {"label": max(scores, key=lambda name: scores[name])}
    chosen = {"labels": [name for name, share in scores.items() if share >= 0.5]} if adapted.problem == "multi" else {}
    return {**best, **chosen, "scores": scores}
