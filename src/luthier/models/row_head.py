"""A classification head on hidden states: what each architecture does between its last layer and the classes.

Which form a model has is found by its parts; `suited.prove_head` holds the result against the model's own logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError

KNOWN = "BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA, MPNet, ALBERT, DeBERTa, ModernBERT"
"""Encoders whose heads are proved by the tests; others may pass the proof too."""


def unknown(model: Any) -> ModelError:
    """Why this model's head is not used."""
    return ModelError(
        f"{type(model).__name__} has no classification head that is known here",
        where="model.path",
        remedy=f"{KNOWN}, or a decoder",
    )


def encoder_logits(model: Any, states: Tensor, bounds: Tensor) -> Tensor:
    """[S, labels] from the flat states [T, hidden] of rows that begin and end at `bounds` [S + 1]."""
    start = states[bounds[:-1].to(states.device)]
    if not hasattr(model, "classifier"):
        raise unknown(model)
    if hasattr(model, "head") and hasattr(model, "drop"):  # ModernBERT
        mean = getattr(model.config, "classifier_pooling", "cls") == "mean"
        return model.classifier(model.drop(model.head(_means(states, bounds) if mean else start)))
    own = getattr(model, "pooler", None)
    if own is not None:  # DeBERTa
        return model.classifier(model.dropout(own(start[:, None])))
    inner = model.base_model
    pooler = getattr(inner, "pooler", None)
    if pooler is not None and not hasattr(model.classifier, "out_proj"):
        if hasattr(inner, "pooler_activation"):  # ALBERT: a bare linear layer and its activation
            return model.classifier(model.dropout(inner.pooler_activation(pooler(start))))
        return model.classifier(model.dropout(pooler(start[:, None])))
    if hasattr(model, "pre_classifier"):  # DistilBERT
        return model.classifier(model.dropout(torch.relu(model.pre_classifier(start))))
    return model.classifier(start[:, None])


def _means(states: Tensor, bounds: Tensor) -> Tensor:
    """[S, hidden]: the mean over each row's tokens."""
    rows = states.split((bounds[1:] - bounds[:-1]).tolist())
    return torch.stack([row.mean(dim=0) for row in rows])
