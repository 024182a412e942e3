"""Labels as text: every label is scored as the answer to the row's prompt.

    score(label) = Σ log p(token of the label | prompt, tokens before)      (or that divided by the label's tokens)

Rows are the rows of `instruct` whose answer is the right label; they carry the class index too. Label tokens are
those of training. The stop token is trained, and counted in the loss, but is no part of a score. Hidden states of a
prompt are computed once for all labels where the model is a decoder in the flat layout; logits are never kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.types import IGNORE, Example, Row, Source, Turn
from luthier.engine.batch import Batch, from_rows
from luthier.models.base import Base

TOKENS = 8192
"""Tokens of candidates that go through the model at once, prompts counted once where they are shared."""


def candidates(adapted: Any) -> list[list[int]]:
    """Ids of each label's text and the stop token, as a training row ends with them."""
    from luthier.data.encode import encode
    from luthier.data.settings import DataSettings

    place = Source("label", 0)
    asked = [Example(name, (Turn("user", "x"),), place, name) for name in adapted.labels]
    settings = DataSettings(train="labels", max_length=adapted.base.anatomy.window)
    tokenizer, stop = adapted.base.tokenizer, adapted.base.stop_ids[0]
    options: dict[str, Any] = {"labels": adapted.labels, "stop_id": stop, "spoken": adapted.task.spoken}
    rows = encode(asked, adapted.template, tokenizer, settings, "classify", **options)
    return [row.labels[row.labels != IGNORE].tolist() for row in rows]


def scores(adapted: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """([S, labels] float64 scores, [S] float64 negative log-likelihood of the right label and its end)."""
    endings = adapted.label_ids
    shared = adapted.layout == "flat" and adapted.base.kind == "decoder" and adapted.base.trunk is None
    rows = [_asked(batch, index, endings) for index in range(len(batch.row_ids))]
    found: list[Tensor] = []
    with _sharing(adapted.base, shared), torch.no_grad():
        for group in _groups(rows, endings, shared):
            found.append(_likelihoods(adapted, group, endings))
    table = torch.cat(found)  # [S, labels, 2]: the label's tokens, its end
    truth = torch.arange(len(rows)), _classes(batch)
    sizes = torch.tensor([len(ids) - 1 for ids in endings], dtype=torch.float64)
    made = -table[..., 0]
    if adapted.task.params.normalize == "tokens":
        made = made / sizes
    return made.to(adapted.device), table.sum(-1)[truth].to(adapted.device)


def _classes(batch: Batch) -> Tensor:
    assert batch.labels is not None, "classification rows carry labels"
    return batch.labels.long().cpu()


def _asked(batch: Batch, index: int, endings: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """(prompt, task) of a row: its tokens without the right label and the stop token."""
    own = endings[int(_classes(batch)[index])]
    ids = batch.input_ids[int(batch.bounds[index]) : int(batch.bounds[index + 1])].tolist()
    assert ids[-len(own) :] == list(own), "the row ends with another text than its label"
    return ids[: -len(own)], 0 if batch.tasks is None else int(batch.tasks[index])


def _groups(
    rows: Sequence[tuple[list[int], int]], endings: Sequence[Sequence[int]], shared: bool
) -> Iterator[list[tuple[list[int], int]]]:
    """Runs of prompts whose candidates fit TOKENS, at least one each."""
    group: list[tuple[list[int], int]] = []
    ends, size = sum(map(len, endings)), 0
    for row in rows:
        own = ends + len(row[0]) * (1 if shared else len(endings))
        if group and size + own > TOKENS:
            yield group
            group, size = [], 0
        group.append(row)
        size += own
    if group:
        yield group


def _likelihoods(adapted: Any, group: Sequence[tuple[list[int], int]], endings: Sequence[Sequence[int]]) -> Tensor:
    """[rows, labels, 2] negative log-likelihoods: of the label's tokens, and of its end."""
    made = []
    for number, (prompt, task) in enumerate(group):
        before = [IGNORE] * len(prompt)
        for index, ids in enumerate(endings):
            name, whole, trained = f"{number}/{index}", [*prompt, *ids], [*before, *ids]
            made.append(Row(name, np.array(whole, np.int32), np.array(trained, np.int32), None, task))
    batch = from_rows(made)
    losses = adapted.token_nll(batch).double().cpu()
    ends = batch.bounds[1:] - 2  # the place that predicts the stop token
    end = losses[ends]
    total = torch.zeros(len(made), dtype=torch.float64).index_add_(0, batch.segment_of_token(), losses)
    return torch.stack([total - end, end], dim=-1).view(len(group), len(endings), 2)


@contextmanager
def _sharing(base: Base, on: bool) -> Iterator[None]:
    """Inside: tokens that rows begin with are computed once."""
    before = base.shared_prefix
    base.shared_prefix = on or before
    try:
        yield
    finally:
        base.shared_prefix = before
