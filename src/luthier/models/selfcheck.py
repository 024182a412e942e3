"""Before training: is the flat layout exact for this very model and method? Three real rows and the longest decide.

Loss and every trained gradient of the flat batch are held against the rows one by one. Within 1e-4 the flat
layout is used; otherwise, or when the model refuses it, padding is, and the reason is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.events import Emit, silent
from luthier.core.types import Row
from luthier.engine import attention
from luthier.engine.batch import Batch, from_rows

TOLERANCE = 1e-4


def choose_layout(adapted: Any, rows: Sequence[Row], emit: Emit = silent, longest: Row | None = None) -> str:
    """ "flat" or "padded"; leaves the model as it was. A GPU tries its one-kernel attention, then a call a length.

    `rows` go through the model together, then `longest` alone: windows act on long rows only.
    """
    if not rows:
        return "padded"
    before, tolerance = adapted.layout, allowed(adapted)
    adapted.eval()
    try:
        for fused in (True, False) if _on_gpu(adapted) else (True,):
            attention.use_fused(fused)
            found = _against_padded(adapted, rows)
            if isinstance(found, float) and longest is not None:
                alone = _against_padded(adapted, [longest])
                found = max(found, alone) if isinstance(alone, float) else alone
            if isinstance(found, float) and found <= tolerance:
                emit("selfcheck", layout="flat", difference=found, tolerance=tolerance)
                return "flat"
    finally:
        adapted.layout = before
    reason = f"flat ones differ by {found:.2g}" if isinstance(found, float) else found
    emit(
        "warning",
        what=f"padded batches are used: {reason}",
        where="train.engine",
        remedy="nothing is lost but speed",
    )
    return "padded"


def _against_padded(adapted: Any, rows: Sequence[Row]) -> float | str:
    """How far the flat layout is from padded rows one by one, or what it stumbled over."""
    options = adapted.loss_options
    try:
        adapted.layout = "padded"
        adapted.loss_options = {**options, "checkpointing": False}  # recomputing loses a prefix of padded rows
        alone = measure(adapted, [from_rows([row]) for row in rows])
        adapted.layout, adapted.loss_options = "flat", options
        return difference(alone, measure(adapted, [from_rows(list(rows))]))
    except (LuthierError, RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        return f"{type(error).__name__}: {error}".split("\n")[0][:200]
    finally:
        adapted.loss_options = options


def _on_gpu(adapted: Any) -> bool:
    return next(adapted.base.model.parameters()).device.type == "cuda"


def allowed(adapted: Any) -> float:
    """The largest difference that rounding explains in the base's dtype."""
    return TOLERANCE if next(adapted.base.model.parameters()).dtype == torch.float32 else 3e-2


def measure(adapted: Any, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Loss and gradients of Σ total, as {"loss": …, weight name: gradient}."""
    weights = adapted.parameters_by_name()
    kept = {name: weight.grad for name, weight in weights.items()}
    for weight in weights.values():
        weight.grad = None
    try:
        total = torch.zeros(())
        for batch in batches:
            made = adapted.loss(batch).total
            made.backward()
            total = total + made.detach().float().cpu()
        found = {name: weight.grad.detach().clone() for name, weight in weights.items() if weight.grad is not None}
    finally:
        for name, weight in weights.items():
            weight.grad = kept[name]
    return {"loss": total, **found}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference relative to the size of what is compared (all gradients together)."""
    if set(one) != set(other):
        return float("inf")
    loss = float((one["loss"] - other["loss"]).abs() / one["loss"].abs().clamp(min=1e-9))
    names = [name for name in one if name != "loss"]
    error = sum(float((one[name].double() - other[name].double()).square().sum()) for name in names)
    size = sum(float(one[name].double().square().sum()) for name in names)
    return max(loss, (error / max(size, 1e-30)) ** 0.5)
