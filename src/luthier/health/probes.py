"""Probes: hooks and small factorisations that turn an adapter into numbers by layer (definitions: docs/health.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.types import Row
from luthier.data.batching import evaluation_batches

PROBE_ROWS = 32
ACTIVE = 1e-3
"""A cell counts as active above this share of the base output's root mean square."""


def low_rank_parts(model: nn.Module) -> Iterator[tuple[str, Any, Tensor, Tensor, float]]:
    """(name, module, A [r, in], B [out, r], scale) of every LoRA-type linear layer in place."""
    for name, module in model.named_modules():
        factors = getattr(module, "lora_A", None)
        if not factors or not hasattr(module, "scaling"):
            continue
        for key in factors:
            yield name, module, factors[key].weight, module.lora_B[key].weight, float(module.scaling[key])


def singular_values(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Singular values of scale·B·A from its small factors: QR of both, then the r × r core. O((m+n)r²)."""
    right = torch.linalg.qr(a.detach().float().t()).R
    left = torch.linalg.qr(b.detach().float()).R
    return torch.linalg.svdvals(scale * left @ right.t())


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
    total = values.sum()
    if float(total) == 0:
        return 0.0
    shares = values / total
    return float(torch.exp(-(shares * torch.log(shares.clamp(min=1e-30))).sum()))


def weight_numbers(model: nn.Module) -> dict[str, dict[str, float]]:
    """name → weight_norm_ratio ‖ΔW‖/‖W‖, effective_rank, rank."""
    made = {}
    for name, module, a, b, scale in low_rank_parts(model):
        values = singular_values(a, b, scale)
        base = module.get_base_layer().weight.detach().float().norm()
        made[name] = {
            "weight_norm_ratio": float(values.square().sum().sqrt() / base.clamp(min=1e-12)),
            "effective_rank": effective_rank(values),
            "rank": float(a.shape[0]),
        }
    return made


class BranchProbe:
    """While open, records the branch output B·A·x of every low-rank layer beside the layer's base output."""

    def __init__(self, model: nn.Module):
        self.sums: dict[str, list[float]] = {}
        self._handles = []
        for name, module, a, b, scale in low_rank_parts(model):
            self._handles.append(module.register_forward_hook(self._hook(name, a, b, scale)))

    def _hook(self, name: str, a: Tensor, b: Tensor, scale: float) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            x = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            branch = scale * (x @ a.float().t()) @ b.float().t()
            plain = output.detach().float().reshape(-1, output.shape[-1]) - branch
            self.sums.setdefault(name, [0.0, 0.0, 0.0, 0.0, 0.0])
            row = self.sums[name]
            size = plain.square().mean().sqrt().clamp(min=1e-12)
            energy = branch.square()
            shares = energy / energy.sum(-1, keepdim=True).clamp(min=1e-30)
            entropy = -(shares * torch.log(shares.clamp(min=1e-30))).sum(-1) / math.log(branch.shape[-1])
            row[0] += float(energy.sum())
            row[1] += float(plain.square().sum())
            row[2] += float((branch.abs() > ACTIVE * size).float().mean(-1).sum())
            row[3] += float(entropy.sum())
            row[4] += len(branch)

        return note

    def close(self) -> dict[str, dict[str, float]]:
        """name → relative_strength ‖D‖/‖Wx‖, activation_rate, activation_entropy (0 to 1, mean over tokens)."""
        for handle in self._handles:
            handle.remove()
        return {
            name: {
                "relative_strength": math.sqrt(row[0] / max(row[1], 1e-30)),
                "activation_rate": row[2] / max(1.0, row[4]),
                "activation_entropy": row[3] / max(1.0, row[4]),
            }
            for name, row in self.sums.items()
        }


def effect(adapted: Any, rows: Sequence[Row]) -> float:
    """Median over tokens of ‖h_on − h_off‖ / ‖h_off‖; for a trained head, the change of the logits counts too."""
    found: list[Tensor] = []
    with torch.no_grad():
        for batch in evaluation_batches(rows, 4096):
            on = adapted.hidden(batch).float()
            with adapted.off():
                plain = adapted.hidden(batch).float()
            found.append(((on - plain).norm(dim=-1) / plain.norm(dim=-1).clamp(min=1e-9)).cpu())
            if adapted.task.has_head:
                logits = adapted.row_logits(batch).float()
                with adapted.off():
                    before = adapted.row_logits(batch).float()
                found.append(((logits - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-9)).cpu())
    return float(torch.cat(found).median()) if found else 0.0


def gradient_norms(adapted: Any, rows: Sequence[Row]) -> dict[str, float]:
    """weight name → gradient norm of the loss on the probe rows; the weights are left as they are."""
    weights = adapted.parameters_by_name()
    needed = {name: weight.requires_grad for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.grad = None
    try:
        total = count = 0.0
        for batch in evaluation_batches(rows, 2048):
            made = adapted.loss(batch)
            made.total.backward()
            total, count = total + float(made.total.detach()), count + made.count
        return {
            name: float(weight.grad.norm()) / max(1.0, count)
            for name, weight in weights.items()
            if weight.grad is not None
        }
    finally:
        for name, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(needed[name])
