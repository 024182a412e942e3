"""How the model behaves on the probe rows: labels, answers, stopping, batching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from luthier.core.types import IGNORE, Row
from luthier.engine.batch import from_rows
from luthier.health.facts import Facts
from luthier.health.probes.states import Seen
from luthier.models import decode

ANSWERS = 16
FEWEST_ANSWERS = 6
"""Fewer are no ground to call a model collapsed."""
LONGEST_ANSWER = 64
BATCHED = 8


def look_at_labels(rows: Sequence[Row], facts: Facts, stop_ids: Sequence[int]) -> None:
    """Counts over trained tokens; rows with targets of their own have none."""
    facts.rows = len(rows)
    if not rows or rows[0].target is not None:
        return
    trained = [np.flatnonzero(row.labels[1:] != IGNORE) for row in rows]
    facts.unsupervised_rows = sum(not len(places) for places in trained)
    pairs = list(zip(rows, trained, strict=True))
    facts.fully_trained_rows = sum(0 < len(row.input_ids) - 1 == len(places) for row, places in pairs)
    stops = set(stop_ids)
    facts.stop_trained_rows = sum(len(p) > 0 and int(row.labels[1:][p[-1]]) in stops for row, p in pairs)


@torch.no_grad()
def look_at_batching(adapted: Any, rows: Sequence[Row], seen: Seen, facts: Facts) -> None:
    """Largest difference between a row alone and the same row in a batch of rows of other lengths."""
    if len(rows) < 2:
        return
    order = np.argsort([len(row.input_ids) for row in rows], kind="stable")
    places = order[np.unique(np.linspace(0, len(rows) - 1, min(BATCHED, len(rows))).astype(int))].tolist()
    batch = from_rows([rows[index] for index in places]).to(adapted.device)
    found = adapted.row_logits(batch).float() if batch.labels is not None else adapted.token_nll(batch).float()
    alone = torch.cat([seen.outputs[index] for index in places])
    facts.padding_difference = float((found - alone).abs().max())


def look_at_classes(rows: Sequence[Row], seen: Seen, facts: Facts) -> None:
    """Share of the most frequent predicted and true class."""
    if not rows or not isinstance(rows[0].target, int | np.integer) or not seen.finite:
        return
    called = Counter(int(logits.argmax()) for logits in seen.outputs)
    true = Counter(int(row.target) for row in rows)  # type: ignore[arg-type]
    facts.top_class = called.most_common(1)[0][1] / len(rows)
    facts.top_true_class = true.most_common(1)[0][1] / len(rows)


def look_at_answers(adapted: Any, rows: Sequence[Row], facts: Facts) -> None:
    """Greedy answers to the rows' own prompts, base and tuned, as token ids."""
    asked = [(row, cut) for row in rows if (cut := _prompt_length(row)) >= 2][:ANSWERS]
    if not facts.answers_expected or not asked or not facts.finite:
        return
    prompts = [row.input_ids[:cut].tolist() for row, cut in asked]
    wanted = [row.input_ids[cut:].tolist() for row, cut in asked]
    limit = min(LONGEST_ANSWER, 2 * max(map(len, wanted)) + 8)
    stops = adapted.base.stop_ids
    adapted.eval()
    tasks = [row.task for row, _ in asked]
    tuned = decode.generate(adapted, prompts, max_new_tokens=limit, stop_ids=stops, tasks=tasks)
    with adapted.off():
        base = decode.generate(adapted, prompts, max_new_tokens=limit, stop_ids=stops)
    fair = [index for index, ids in enumerate(wanted) if 2 * len(ids) <= limit]  # longer ones may not end in time
    if fair:
        facts.stop_rate = sum(tuned[index].finish == "stop" for index in fair) / len(fair)
        facts.base_stop_rate = sum(base[index].finish == "stop" for index in fair) / len(fair)
    texts = [[token for token in one.ids if token not in stops] for one in tuned]
    references = [[token for token in ids if token not in stops] for ids in wanted]
    if len(texts) >= FEWEST_ANSWERS:
        facts.same_answers, facts.same_references = _most_common(texts), _most_common(references)
    facts.distinct2, facts.reference_distinct2 = _distinct(texts), _distinct(references)


def _prompt_length(row: Row) -> int:
    """Tokens before the first trained one; 0 where there is nothing to ask."""
    if row.target is not None:
        return 0
    trained = np.flatnonzero(row.labels[1:] != IGNORE)
    return int(trained[0]) + 1 if len(trained) else 0


def _most_common(texts: Sequence[Sequence[int]]) -> float:
    return Counter(tuple(text) for text in texts).most_common(1)[0][1] / len(texts)


def _distinct(texts: Sequence[Sequence[int]]) -> float | None:
    """Mean share of different pairs in texts that are long enough to loop."""
    shares = [len({*pairwise(t)}) / (len(t) - 1) for t in texts if len(t) >= 8]
    return sum(shares) / len(shares) if shares else None
