"""chrF2 (Popović 2015), sacrebleu's: F-score of character n-grams up to 6, the same for every language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored

ORDER = 6
BETA = 2.0


@METRICS.register("chrf")
@traits("text")
def chrf(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 100. Counts are summed over rows, then averaged over n-gram orders; spaces do not count."""
    rows = [_counts("".join(p.split()), "".join(r.split())) for p, r in zip(predictions, references, strict=True)]
    return Scored(np.array(rows, dtype=np.float64).reshape(len(rows), 3 * ORDER), _combine)


def _counts(text: str, wanted: str) -> list[int]:
    """For each order: n-grams of the answer, of the reference, shared."""
    made = []
    for size in range(1, ORDER + 1):
        mine, other = (Counter(part[i : i + size] for i in range(len(part) - size + 1)) for part in (text, wanted))
        made += [mine.total() if other else 0, other.total(), (mine & other).total()]
    return made


def _combine(sums: np.ndarray) -> np.ndarray:
    mine, other, shared = (sums[..., part::3] for part in range(3))
    used = ((mine > 0) & (other > 0)).astype(float)
    orders = used.sum(-1)
    precision, recall = (_divide((_divide(shared, part) * used).sum(-1), orders) for part in (mine, other))
    return 100 * _divide((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
