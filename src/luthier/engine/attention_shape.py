"""Where attention looks, head by head, without a T×T matrix: query rows are taken in chunks.

    entropy    of the weights, divided by the log of how many keys a query sees: 0 one key, 1 evenly spread
    distance   mean of query position - key position, in tokens
    sink       share of the weight on the first 4 tokens
    far        share on keys more than `far` tokens back, over the queries so far into the row
    even       what `far` would be if the weights were evenly spread over all visible keys
    prefix     share on the virtual keys before the row

Pure torch; the softmax is in float32. Source of the sink: Xiao et al. 2023, arXiv:2309.17453 (first 4 tokens).
"""

from __future__ import annotations

import torch
from torch import Tensor

SINK = 4
CHUNK = 128
NAMES = ("entropy", "distance", "sink", "far", "even", "prefix")


def attention_shape(
    query: Tensor,
    key: Tensor,
    *,
    far: int,
    ahead: int = 0,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> dict[str, Tensor]:
    """query [heads, T, d], key [kv_heads, ahead + T, d] (rotated, virtual keys first) → name → [heads] means over
    queries. Queries that see one key only count for no entropy; `far` and `even` are NaN where no query looks back
    that far."""
    heads, length, width = query.shape
    key = key.repeat_interleave(heads // key.shape[0], 0).float()
    places = torch.arange(-ahead, length, device=query.device)
    sums = {name: torch.zeros(heads, device=query.device) for name in NAMES}
    counts = dict.fromkeys(NAMES, 0)
    for start in range(0, length, chunk):
        own = torch.arange(start, min(length, start + chunk), device=query.device)
        distance = own[:, None] - places[None]
        seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            seen &= distance.abs() < window
        scores = query[:, own].float() @ key.transpose(1, 2) * (scale if scale is not None else width**-0.5)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
        _add(sums, counts, weights, distance, seen, places, far)
    return {name: sums[name] / counts[name] if counts[name] else sums[name] * torch.nan for name in NAMES}


def _add(
    sums: dict[str, Tensor],
    counts: dict[str, int],
    weights: Tensor,
    distance: Tensor,
    seen: Tensor,
    places: Tensor,
    far: int,
) -> None:
    """One chunk: weights [heads, n, keys]; distance and seen [n, keys]; places [keys], virtual ones negative."""
    visible = seen.sum(-1)
    old = (distance > far) & (places >= 0)[None]
    choice, beyond, reach = visible > 1, seen & old, old.any(-1)  # what a sliding window hides counts as not looked at
    spread = -(weights * weights.clamp(min=1e-30).log()).sum(-1) / visible.clamp(min=2).log()
    real = (places >= 0).float()
    found = {
        "entropy": (spread, choice),
        "distance": ((weights * real * distance.abs()).sum(-1), torch.ones_like(choice)),
        "sink": ((weights * ((places >= 0) & (places < SINK))).sum(-1), torch.ones_like(choice)),
        "far": ((weights * beyond).sum(-1), reach),
        "even": ((beyond.sum(-1) / visible).expand(len(weights), -1), reach),
        "prefix": ((weights * (1 - real)).sum(-1), torch.ones_like(choice)),
    }
    for name, (values, counted) in found.items():
        sums[name] += values[:, counted].sum(-1)
        counts[name] += int(counted.sum())
