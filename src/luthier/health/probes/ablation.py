"""One layer's branches switched off at a time: what the task loses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.core.types import IGNORE, Row
from luthier.data.batching import evaluation_batches
from luthier.health.probes.states import row_loss
from luthier.metrics import METRICS
from luthier.metrics.resample import paired
from luthier.models import forward

ROWS = 32
MOST_LAYERS = 12
TOKENS = 2048
MOST_TOKENS = 16_384
"""Every layer reads the rows once more: long rows are fewer, but no less than LEAST_ROWS."""
LEAST_ROWS = 4


def few_of(rows: Sequence[Row]) -> list[Row]:
    """The first rows, at most ROWS and MOST_TOKENS."""
    upto = np.cumsum([len(row.input_ids) for row in rows[:ROWS]])
    return list(rows[: max(LEAST_ROWS, int((upto <= MOST_TOKENS).sum()))])


@torch.no_grad()
def losses(adapted: Any, rows: Sequence[Row]) -> np.ndarray:
    """[rows, 2] summed loss and units of each row, in batches."""
    place = {row.id: index for index, row in enumerate(rows)}
    found = np.zeros((len(rows), 2))
    adapted.eval()
    for batch in evaluation_batches(rows, TOKENS):
        where = [place[name] for name in batch.row_ids]
        batch = batch.to(adapted.device)
        if batch.labels is not None:
            found[where] = [
                [value, 1.0] for value in row_loss(adapted.row_logits(batch).float(), batch.labels).tolist()
            ]
            continue
        each = forward.token_nll(adapted.base, adapted.hidden(batch), batch.targets).double()
        segment = batch.segment_of_token().to(each.device)
        for column, values in enumerate((each, (batch.targets != IGNORE).double())):
            sums = torch.zeros(len(where), dtype=torch.float64, device=each.device).index_add_(0, segment, values)
            found[where, column] = sums.cpu().numpy()
    return found


def difference(base: np.ndarray, tuned: np.ndarray, seed: int) -> dict[str, Any]:
    """Paired bootstrap of the token-weighted loss, tuned − base."""
    loss = METRICS.get("loss")
    return paired(loss(base, base[:, 1]), loss(tuned, tuned[:, 1]), 400, seed)


def measure(
    adapted: Any, rows: Sequence[Row], places: dict[int, list[Any]], seed: int
) -> list[tuple[int, float, float, float]]:
    """(layer, cost in nats, low, high) for at most MOST_LAYERS layers, evenly drawn."""
    chosen = sorted(places)
    if len(chosen) > MOST_LAYERS:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, MOST_LAYERS).astype(int).tolist()]
    if len(chosen) < 2 or len(rows) < 2:
        return []
    few = few_of(rows)
    whole = losses(adapted, few)
    made = []
    for layer in chosen:
        with silenced(places[layer]):
            found = difference(whole, losses(adapted, few), seed)
        made.append((layer, found["value"], found["ci95"][0], found["ci95"][1]))
    return made


@contextmanager
def silenced(parts: Sequence[Any]) -> Iterator[None]:
    """Inside: these branches add nothing. PEFT's layers by their switch, own branches by a hook."""
    tuners = [part for part in parts if hasattr(part, "base_layer")]
    branches = [part for part in parts if isinstance(part, nn.Module) and not hasattr(part, "base_layer")]
    before = [part._disable_adapters for part in tuners]
    handles = [part.register_forward_hook(lambda module, given, out: torch.zeros_like(out)) for part in branches]
    try:
        for part in tuners:
            part._disable_adapters = True
        yield
    finally:
        for part, value in zip(tuners, before, strict=True):
            part._disable_adapters = value
        for handle in handles:
            handle.remove()
