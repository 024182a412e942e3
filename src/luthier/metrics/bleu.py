"""Corpus BLEU through sacrebleu (Post 2018): tokeniser 13a, zh where the reference is Chinese."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import Scored
from luthier.metrics.words import has_chinese

ORDER = 4


@METRICS.register("bleu")
@traits("text")
def bleu(predictions: Sequence[str], references: Sequence[str]) -> Scored:
    """0 to 100 (sacrebleu's unit). N-gram counts are summed over rows before they are divided, as BLEU is defined."""
    rows = np.zeros((len(predictions), 2 + 2 * ORDER))
    for index, (text, wanted) in enumerate(zip(predictions, references, strict=True)):
        made = _scorer("zh" if has_chinese(wanted) else "13a").sentence_score(text, [wanted])
        rows[index] = [made.sys_len, made.ref_len, *made.counts, *made.totals]
    return Scored(rows, _combine)


@functools.cache
def _scorer(tokenizer: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)


def _combine(sums: np.ndarray) -> np.ndarray:
    from sacrebleu.metrics.bleu import BLEU

    made = []
    for row in sums.reshape(-1, sums.shape[-1]):
        counts, totals = (row[2 + part * ORDER : 2 + (part + 1) * ORDER].tolist() for part in (0, 1))
        made.append(BLEU.compute_bleu(counts, totals, int(row[0]), int(row[1])).score if row[0] else 0.0)
    return np.array(made).reshape(sums.shape[:-1])
