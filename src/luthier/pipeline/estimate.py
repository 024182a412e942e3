"""What a run will take, measured rather than guessed: one group of the first epoch goes forward and backward."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.pipeline.prepare import Data
from luthier.recipe import Recipe

MEGABYTE = 1e6


def estimate(recipe: Recipe, adapted: Any, plan: Any, steps: int, data: Data) -> dict[str, float]:
    """{"training_s", "memory_mb", "disk_mb"}: training alone, without measuring and reporting at the end.

    training_s scales the seconds per token of one group to all steps and validations (a forward alone counts as a
    third); with a trunk cache, what comes after the first epoch by those of the same group read from the cache.
    memory_mb is this process' peak, with the optimizer's state added; where the model is on a GPU it is the GPU's
    memory (**unmeasured**: no GPU has run it). disk_mb is the kept checkpoints and the adapter.
    """
    from luthier.train import optimizer_state

    group = next(iter(plan.groups(0)))
    place = adapted.device
    adapted.train()
    _forget_peak(place)
    _seconds(adapted, group[:1])  # the first one pays for allocations
    size = sum(int(batch.bounds[-1]) for batch in group)
    fresh = kept = _seconds(adapted, group) / size
    if recipe.train.trunk_cache:
        kept = _seconds_from_cache(adapted, group, data.rows["train"], size) / size or fresh
    adapted.eval()
    weights = adapted.parameters_by_name()
    state = optimizer_state.expected_bytes(recipe.train.optimizer, weights)
    size = sum(tensor.numel() * tensor.element_size() for tensor in adapted.state().values())
    once = _tokens(data.rows["train"])
    tokens = steps * once / max(1, plan.steps(0))
    trained = fresh * min(tokens, once) + kept * max(0.0, tokens - once)
    validated = fresh / 3 * _tokens(data.rows["validation"]) * (1 + _validations(recipe, steps, plan))
    return {
        "training_s": round(trained + validated, 1),
        "memory_mb": round((peak_bytes(place) + state) / MEGABYTE),
        "disk_mb": round(((size + state) * recipe.train.keep_checkpoints + size) / MEGABYTE, 1),
    }


def _seconds(adapted: Any, group: Any) -> float:
    """One pass forward and backward; its gradients are forgotten."""
    _wait(adapted.device)
    began = time.perf_counter()
    for batch in group:
        adapted.loss(batch).total.backward()
    _wait(adapted.device)
    took = time.perf_counter() - began
    for weight in adapted.parameters_by_name().values():
        weight.grad = None
    return took


def _seconds_from_cache(adapted: Any, group: Any, rows: Any, tokens: int) -> float:
    """Of the group once more when the cache knows it; 0 where no cache applies (`check` says why elsewhere)."""
    from luthier.models import trunk

    few: list[Any] = []
    while len(few) < len(rows) and _tokens(few) < tokens:
        few.append(rows[len(few)])  # the cache has room for as many tokens as these
    with TemporaryDirectory() as folder:
        file = Path(folder) / "trunk"
        if not trunk.install(adapted, few, file):
            return 0.0
        adapted.train()  # looking at the layers leaves it at rest
        _seconds(adapted, group)
        took = _seconds(adapted, group)
        trunk.remove(adapted, file)
    return took


def _tokens(rows: Any) -> int:
    return sum(len(rows[index].input_ids) for index in range(len(rows)))


def _validations(recipe: Recipe, steps: int, plan: Any) -> int:
    every = recipe.train.evaluate_every
    if every == "never":
        return 1
    return steps // (plan.steps(0) if every == "epoch" else every)


def _forget_peak(place: Any) -> None:
    """What loading took on a GPU beyond what is left of it is no part of training."""
    if place.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(place)


def _wait(place: Any) -> None:
    """A GPU works on while Python runs ahead."""
    if place.type == "cuda":
        import torch

        torch.cuda.synchronize(place)


def peak_bytes(place: Any = None) -> int:
    """Peak of what torch allocated on a GPU: weights, gradients, activations. Else peak resident memory of this
    process; Linux tells kilobytes, macOS bytes."""
    if place is not None and place.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(place))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
