"""What a model makes of long rows: loss by position, the same with a short memory, long tasks found or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from luthier.core.types import IGNORE, Row
from luthier.data import longtasks
from luthier.engine.batch import from_rows
from luthier.models import forward
from luthier.models.base import Base

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def buckets(window: int, target: int) -> list[tuple[int, int]]:
    """Half of the old window, the other half, then the old window's multiples: at most 10 buckets up to the target."""
    step = window * math.ceil(target / window / 8)
    edges = [0, window // 2, window, *range(window + step, target, step), target]
    return list(pairwise(edges))


def token_losses(base: Base, ids: np.ndarray, adapted: Any = None) -> np.ndarray:
    """[T] loss of each token given all before it; the first one, which nothing predicts, is NaN."""
    batch = from_rows([Row("window", ids, ids)])
    with torch.no_grad():
        if adapted is None:
            batch = batch.to(next(base.model.parameters()).device)
            found = forward.token_nll(base, forward.hidden(base, batch), batch.targets)
        else:
            found = adapted.token_nll(batch)
    return np.concatenate([[np.nan], found[:-1].float().cpu().numpy()])


def truncated_losses(base: Base, ids: np.ndarray, window: int) -> np.ndarray:
    """[T] losses where the model sees only its own window: windows that overlap by half, their second half counts."""
    found = np.full(len(ids), np.nan)
    half = max(1, window // 2)
    for start in range(0, max(1, len(ids) - half), half):
        stop = min(len(ids), start + window)
        new = token_losses(base, ids[start:stop])
        fresh = 0 if start == 0 else half
        found[start + fresh : stop] = new[fresh:]
    return found


def by_bucket(losses: Sequence[np.ndarray], edges: Sequence[tuple[int, int]]) -> dict[str, float]:
    """`{"0-256": 2.31, …}`: means over all tokens of all rows that fall into the bucket (those that any row has)."""
    found = {}
    for start, stop in edges:
        values = np.concatenate([row[start:stop] for row in losses]) if len(losses) else np.zeros(0)
        values = values[~np.isnan(values)]
        if len(values):
            found[f"{start}-{stop}"] = round(float(values.mean()), 4)
    return found


def medians(losses: Sequence[np.ndarray], edges: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The same as the median over rows, which one odd document does not move."""
    found = {}
    for start, stop in edges:
        means = [float(np.nanmean(row[start:stop])) for row in losses if np.isfinite(row[start:stop]).any()]
        if means:
            found[f"{start}-{stop}"] = round(float(np.median(means)), 4)
    return found


def answered(base: Base, task: longtasks.LongTask, adapted: Any = None) -> tuple[bool, float]:
    """(greedy decoding gives the answer: every answer token is the likeliest one after the prompt; the answer's mean
    loss in nats a token, which moves long before the answer is found)."""
    prompt, answer = _ids(base, task.prompt, True), _ids(base, task.answer, False)
    ids = np.array([*prompt, *answer])
    labels = np.array([*[IGNORE] * len(prompt), *answer])
    batch = from_rows([Row("task", ids, labels)]).to(next(base.model.parameters()).device)
    with torch.no_grad():
        states = forward.hidden(base, batch) if adapted is None else adapted.hidden(batch)
        losses, hits = forward.token_scores(base, states, batch.targets)
    asked = batch.targets != IGNORE
    return bool(hits[asked].all()), float(losses[asked].mean())


def _ids(base: Base, text: str, first: bool) -> list[int]:
    return list(base.tokenizer(text, add_special_tokens=first, verbose=False)["input_ids"])


def counter(base: Base) -> Any:
    """text → tokens, for `longtasks.make` (special tokens allowed for)."""
    return lambda text: len(base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + 4


def grid(
    base: Base,
    text: str,
    lengths: Sequence[int],
    *,
    kind: str = "passkey",
    trials: int = 2,
    depths: Sequence[float] = DEPTHS,
    adapted: Any = None,
    seed: int = 0,
) -> dict[str, Any]:
    """length × depth: {"lengths", "depths", "shares" of solved test tasks [[…]], "losses" of their answers [[…]],
    "mean" and "loss" over all, "floor"}."""
    count, shares, losses, floor = counter(base), [], [], 0.0
    for length in lengths:
        line, nats = [], []
        for depth in depths:
            tasks = [
                longtasks.make(kind, text, length, count, split="test", number=trial, depth=depth, seed=seed)
                for trial in range(trials)
            ]
            floor = tasks[0].floor
            found = np.array([answered(base, task, adapted) for task in tasks])
            line.append(float(found[:, 0].mean()))
            nats.append(round(float(found[:, 1].mean()), 4))
        shares.append(line)
        losses.append(nats)
    mean, loss = (round(float(np.mean(values)), 4) if values else 0.0 for values in (shares, losses))
    asked = {"lengths": list(lengths), "depths": list(depths), "kind": kind, "trials": trials}
    return {**asked, "shares": shares, "losses": losses, "mean": mean, "loss": loss, "floor": floor}


def battery(
    base: Base, text: str, length: int, count: int, adapted: Any = None, seed: int = 0
) -> Mapping[str, dict[str, float]]:
    """Every kind of long task at one length: {"passkey": {"solved", "loss", "floor"}, …}."""
    sizes, found = counter(base), {}
    for kind in longtasks.KINDS:
        tasks = longtasks.make_many([kind], text, length, sizes, count, "test", seed)
        solved, loss = np.array([answered(base, task, adapted) for task in tasks]).mean(0)
        found[kind] = {"solved": round(float(solved), 4), "loss": round(float(loss), 4)}
        found[kind]["floor"] = round(tasks[0].floor, 6)
    return found
