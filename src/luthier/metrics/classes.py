"""Classification numbers from true and predicted class indices, through scikit-learn, with per-class parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def classification(true: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """{"metrics": {name: value}, "per_class": {...}, "confusion": {"labels", "matrix"}}. Absent classes count 0."""
    from sklearn import metrics

    every = list(range(len(labels)))
    made: dict[str, float] = {"accuracy": float((true == predicted).mean()) if len(true) else 0.0}
    for how in ("macro", "weighted"):
        parts = metrics.precision_recall_fscore_support(true, predicted, labels=every, average=how, zero_division=0)
        made |= {f"precision_{how}": float(parts[0]), f"recall_{how}": float(parts[1]), f"f1_{how}": float(parts[2])}
    made["mcc"] = float(metrics.matthews_corrcoef(true, predicted)) if len(set(true.tolist())) > 1 else 0.0
    each = metrics.precision_recall_fscore_support(true, predicted, labels=every, zero_division=0)
    per_class = {
        label: {
            "precision": float(each[0][i]),
            "recall": float(each[1][i]),
            "f1": float(each[2][i]),
            "rows": int(each[3][i]),
        }
        for i, label in enumerate(labels)
    }
    matrix = metrics.confusion_matrix(true, predicted, labels=every).tolist()
    return {"metrics": made, "per_class": per_class, "confusion": {"labels": list(labels), "matrix": matrix}}


def calibration_error(shares: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): Σ share of bin × |accuracy − confidence|."""
    place = np.minimum((shares * bins).astype(int), bins - 1)
    total = 0.0
    for index in range(bins):
        inside = place == index
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - shares[inside].mean())
    return float(total)
