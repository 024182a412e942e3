"""Norms and ranks of weight updates, from the small factors wherever there are any: ΔW itself is never formed.

ΔW = B A,  B = Q_B R_B,  Aᵀ = Q_A R_A  ⇒  the singular values of ΔW are those of R_B R_Aᵀ  (r × r)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.health.facts import LayerNumbers

LARGEST_DENSE = 1024
"""Smaller side of a matrix that is still decomposed whole."""
SKETCH = 64
"""Singular values that are estimated of larger dense updates."""
TOP = 10
INTRUDER = 0.5


def factors(part: Any) -> tuple[Tensor, Tensor] | None:
    """(B [out, r], A [r, in]) with the scale in B, summed over active adapters, or None where there are none.

    Understands PEFT's tuner layers (`lora_A`, `lora_B`) and own branches (`down`, `up`).
    """
    if hasattr(part, "lora_A") and hasattr(part, "lora_B"):
        names = [n for n in getattr(part, "active_adapters", ()) if n in part.lora_A]
        pairs = [(part.lora_B[n].weight * part.scaling[n], part.lora_A[n].weight) for n in names]
        for name in getattr(part, "active_adapters", ()):
            if name in getattr(part, "lora_embedding_A", {}):
                pairs.append((part.lora_embedding_B[name] * part.scaling[name], part.lora_embedding_A[name]))
        if not pairs or any(a.dim() != 2 for _, a in pairs):
            return None
        return torch.cat([b for b, _ in pairs], 1).detach().double(), torch.cat([a for _, a in pairs]).detach().double()
    if hasattr(part, "down") and hasattr(part, "up"):
        scale = float(getattr(part, "scale", 1.0))
        return part.up.weight.detach().double() * scale, part.down.weight.detach().double()
    return None


def base_weight(part: Any, shape: tuple[int, int]) -> Tensor | None:
    """The weight that the update is added to, as [out, in]; None where there is none or it is quantised."""
    layer = part.get_base_layer() if hasattr(part, "get_base_layer") else None
    weight = getattr(layer, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.dim() != 2:
        return None
    weight = weight.detach().double()
    if tuple(weight.shape) == shape and not getattr(part, "fan_in_fan_out", False):
        return weight
    return weight.t() if tuple(weight.t().shape) == shape else None


def singular_values(b: Tensor, a: Tensor) -> Tensor:
    """All singular values of B A, by QR of both factors."""
    inner = torch.linalg.qr(b, mode="r").R @ torch.linalg.qr(a.t(), mode="r").R.t()
    return torch.linalg.svdvals(inner)


def dense_values(update: Tensor) -> Tensor:
    """Singular values of a dense update; the largest SKETCH ones where it is big."""
    if min(update.shape) <= LARGEST_DENSE:
        return torch.linalg.svdvals(update)
    torch.manual_seed(0)
    return torch.svd_lowrank(update, q=SKETCH)[1]


def ranks(values: Tensor) -> tuple[float, float]:
    """(stable rank ‖·‖_F²/‖·‖₂², effective rank exp H(σ/Σσ)); (0, 0) for a zero matrix."""
    total = float(values.sum())
    if not total > 0:
        return 0.0, 0.0
    share = values / total
    entropy = -(share * torch.log(share.clamp_min(1e-300))).sum()
    return float(values.square().sum() / values.max().square()), float(torch.exp(entropy))


def measure(part: Any, numbers: LayerNumbers) -> None:
    """Fill the weight numbers of a branch."""
    found = factors(part)
    if found is None:
        return
    b, a = found
    if not bool(torch.isfinite(b).all() and torch.isfinite(a).all()):
        numbers.finite = False
        return
    values = singular_values(b, a)
    norm, top = float(values.square().sum().sqrt()), float(values.max())
    numbers.rank = min(a.shape[0], b.shape[0], a.shape[1])
    numbers.stable_rank, numbers.effective_rank = ranks(values)
    weight = base_weight(part, (b.shape[0], a.shape[1]))
    if weight is None and hasattr(part, "down"):
        numbers.weight_norm_ratio, numbers.spectral_ratio = norm / b.shape[0] ** 0.5, top  # against the identity
    if weight is None:
        return
    size = float(weight.norm())
    numbers.weight_norm_ratio = norm / size if size else None
    if norm > 0:
        numbers.projection = float(((b.t() @ weight) * a).sum()) / norm**2
        numbers.projection_error = size / (norm * weight.numel() ** 0.5)
    if min(weight.shape) <= LARGEST_DENSE:
        left, sizes, _ = torch.linalg.svd(weight, full_matrices=False)
        numbers.spectral_ratio = top / float(sizes[0]) if float(sizes[0]) else None
        numbers.intruders = intruders(left, weight + b @ a)


def intruders(left: Tensor, tuned: Tensor, top: int = TOP, epsilon: float = INTRUDER) -> int:
    """Large left singular directions of the tuned weight that the base does not have (Shuttleworth et al. 2024)."""
    mine = torch.linalg.svd(tuned, full_matrices=False)[0][:, :top]
    return int(((left.t() @ mine).abs().max(0).values < epsilon).sum())


def inplace_changes(adapted: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """name → (base value, change) of the base's own weights that the method trains: what `off()` puts back."""
    now = {name: weight.detach().clone() for name, weight in adapted.parameters_by_name().items()}
    with adapted.off():
        before = {name: weight.detach().clone() for name, weight in adapted.parameters_by_name().items()}
    moved = [name for name in now if not torch.equal(before[name], now[name])]
    return {of_base(name): (before[name], now[name] - before[name]) for name in moved}


def of_base(name: str) -> str:
    """A weight's name without the number of the stack's part that trains it."""
    return re.sub(r"^\d+\.", "", name)


def measure_inplace(changes: Mapping[str, tuple[Tensor, Tensor]], numbers: LayerNumbers) -> None:
    """Fill the weight numbers of a layer whose own weights changed."""
    size = sum(float(before.double().square().sum()) for before, _ in changes.values()) ** 0.5
    change = sum(float(delta.double().square().sum()) for _, delta in changes.values()) ** 0.5
    numbers.finite = all(bool(torch.isfinite(delta).all()) for _, delta in changes.values())
    numbers.weight_norm_ratio = change / size if size and numbers.finite else None
    matrices = [delta for _, delta in changes.values() if delta.dim() == 2 and min(delta.shape) > 1]
    if matrices and numbers.finite:
        found = [(ranks(dense_values(m.float().double())), min(m.shape)) for m in matrices]
        found.sort(key=lambda item: item[0][1])
        (numbers.stable_rank, numbers.effective_rank), numbers.rank = found[len(found) // 2]
