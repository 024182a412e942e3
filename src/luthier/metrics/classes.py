"""Counts of classification: from shares and true classes to right, predicted and true rows of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from luthier.metrics.scored import Scored

Average = Literal["macro", "weighted"]


def chosen(shares: np.ndarray) -> np.ndarray:
    """[n] the class with the largest share."""
    return shares.argmax(1)


def indicators(shares: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, true), both [n, classes] 0/1. Several labels a row: every class with a share above one half."""
    if truth.ndim == 2:
        return (shares > 0.5).astype(np.float64), truth.astype(np.float64)
    every = np.eye(shares.shape[1])
    return every[chosen(shares)], every[truth]


def counts(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """[n, 3, classes] right, predicted, true."""
    predicted, true = indicators(np.asarray(predictions), np.asarray(references))
    return np.stack([predicted * true, predicted, true], axis=1)


def averaged(predictions: np.ndarray, references: np.ndarray, part: str, how: Average) -> Scored:
    """precision, recall or f1, as scikit-learn averages it over all classes; empty ones count 0.

    Classes that are neither predicted nor true in these rows are left out, which is scikit-learn's default too.
    """
    made = counts(predictions, references)
    classes = made.shape[2]

    def combine(sums: np.ndarray) -> np.ndarray:
        parts = sums.reshape(*sums.shape[:-1], 3, classes)
        right, predicted, true = parts[..., 0, :], parts[..., 1, :], parts[..., 2, :]
        below = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}[part]
        each = np.divide(right, below, out=np.zeros_like(right), where=below > 0)
        seen = ((predicted + true) > 0).astype(float) if how == "macro" else true
        total = seen.sum(-1)
        return np.divide((each * seen).sum(-1), total, out=np.zeros_like(total), where=total > 0)

    return Scored(made.reshape(len(made), -1), combine)


def per_class(predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """label → {"precision", "recall", "f1", "rows"}."""
    right, predicted, true = counts(predictions, references).sum(0)
    made = {}
    for index, label in enumerate(labels):
        precision = right[index] / predicted[index] if predicted[index] else 0.0
        recall = right[index] / true[index] if true[index] else 0.0
        both = predicted[index] + true[index]
        f1 = 2 * right[index] / both if both else 0.0
        made[label] = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
        made[label]["rows"] = int(true[index])
    return made


def confusion(predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """{"labels", "matrix"}: matrix[i][j] rows are of class i and were called j."""
    size = len(labels)
    cells = np.asarray(references) * size + chosen(np.asarray(predictions))
    return {"labels": list(labels), "matrix": np.bincount(cells, minlength=size * size).reshape(size, size).tolist()}
