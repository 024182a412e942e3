"""Arithmetic on LoRA folders: average, weighted sum, TIES, DARE; and a LoRA drawn out of a full fine-tune.

A weighted sum of LoRAs is exact: s₁w₁B₁A₁ + s₂w₂B₂A₂ is a LoRA of rank r₁ + r₂. TIES (Yadav et al. 2023) and
DARE (Yu et al. 2024) work on the whole updates, which are brought back to a rank by SVD; the error is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

How = Literal["weighted", "ties", "dare"]
A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Made:
    """What was written: the folder, and the relative Frobenius error of each layer's update."""

    folder: Path
    errors: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The largest error, 0 where the result is exact."""
        return max(self.errors.values(), default=0.0)


def average(sources: Sequence[Path], target: Path) -> Made:
    """The mean of LoRAs of one base, exact."""
    return combine(sources, target, [1 / len(sources)] * len(sources))


def combine(
    sources: Sequence[Path],
    target: Path,
    weights: Sequence[float],
    how: How = "weighted",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Made:
    """Write one LoRA made of several. `rank` null keeps `weighted` exact, and else the largest rank of the sources.

    `density` is the share of numbers that TIES keeps and DARE does not drop.
    """
    if len(sources) < 1 or len(weights) != len(sources):
        raise ModelError("one weight for each adapter", where="weights", remedy="give as many weights as adapters")
    if not 0 < density <= 1:
        raise ModelError(f"density {density} is not in (0, 1]", where="density")
    read = [_read(folder) for folder in sources]
    names = _same_layers(read, sources)
    if how == "weighted" and rank is None:
        made = {name: _stacked([(one.parts[name], w) for one, w in zip(read, weights, strict=True)]) for name in names}
        return _write(target, read[0].config, made, dict.fromkeys(names, 0.0))
    size = rank or max(part[0].shape[0] for one in read for part in one.parts.values())
    made, errors = {}, {}
    for index, name in enumerate(names):
        updates = [one.parts[name][1] @ one.parts[name][0] for one in read]
        whole = _MERGES[how](updates, list(weights), density, seed + index)
        made[name], errors[name] = low_rank(whole, size)
    return _write(target, read[0].config, made, errors)


def extract(base: Path, tuned: Path, target: Path, rank: int) -> Made:
    """A LoRA of this rank from the difference of two model folders, over all linear weights of the blocks.

    The error is what a LoRA of that rank cannot hold; weights that are no linear layers are named in the config.
    """
    import torch

    from luthier.methods import targets
    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    first, second = (load_base(ModelSettings(path=str(p), dtype="float32", device="cpu")) for p in (base, tuned))
    names = targets.resolve(first, "all-linear")
    made, errors = {}, {}
    other = dict(second.model.named_parameters())
    for name in names:
        own: Any = first.model.get_submodule(name).weight
        change: Any = other[f"{name}.weight"] - own
        change = change.t() if targets.is_transposed(first, name) else change
        made[f"base_model.model.{name}"], errors[name] = low_rank(change.detach(), rank)
    rest = [
        n
        for n, w in first.model.named_parameters()
        if n.removesuffix(".weight") not in names and not torch.equal(w, other[n])
    ]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "target_modules": targets.short_names(first, names),
        "fan_in_fan_out": any(targets.is_transposed(first, name) for name in names),
        "bias": "none",
    }
    return _write(target, config, made, errors | {f"not in the LoRA: {name}": 1.0 for name in rest})


def low_rank(update: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """((A [r, in], B [out, r]), relative error): the best approximation of `update` [out, in] of that rank."""
    import torch

    left, values, right = torch.linalg.svd(update.float(), full_matrices=False)
    root = values[:rank].sqrt()
    lost = float(values[rank:].square().sum().sqrt())
    whole = float(values.square().sum().sqrt())
    return (root[:, None] * right[:rank], left[:, :rank] * root), lost / whole if whole else 0.0


@dataclass(frozen=True)
class _Lora:
    config: dict[str, Any]
    parts: dict[str, tuple[Tensor, Tensor]]
    """layer → (A, s·B)."""


def _read(folder: Path) -> _Lora:
    from luthier.methods.modules.adaptation import read_weights

    config, tensors = read_weights(folder)
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise ModelError("only plain LoRAs can be combined", where=str(folder), remedy="merge each into its own model")
    if config.get("alpha_pattern") or config.get("rank_pattern"):
        raise ModelError("LoRAs with rank or alpha patterns are not combined", where=str(folder))
    extra = [name for name in tensors if not name.endswith((A, B))]
    if extra:
        raise ModelError(
            f"the adapter trains more than LoRA: {', '.join(extra[:3])}", where=str(folder), remedy="merge it instead"
        )
    rank = int(config["r"])
    scale = float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
    names = [name.removesuffix(A) for name in tensors if name.endswith(A)]
    return _Lora(config, {n: (tensors[n + A].float(), tensors[n + B].float() * scale) for n in names})


def _same_layers(read: Sequence[_Lora], sources: Sequence[Path]) -> list[str]:
    first = read[0].parts
    for one, folder in zip(read[1:], sources[1:], strict=True):
        same = one.parts.keys() == first.keys() and all(
            one.parts[n][0].shape[1] == first[n][0].shape[1] and one.parts[n][1].shape[0] == first[n][1].shape[0]
            for n in first
        )
        if not same:
            raise ModelError("the adapters sit on different layers", where=str(folder), remedy="combine equals only")
    return sorted(first)


def _stacked(parts: Sequence[tuple[tuple[Tensor, Tensor], float]]) -> tuple[Tensor, Tensor]:
    import torch

    return torch.cat([a for (a, _), _ in parts], 0), torch.cat([b * weight for (_, b), weight in parts], 1)


def _weighted(updates: list[Tensor], weights: list[float], density: float, seed: int) -> Tensor:
    return sum((w * u for w, u in zip(weights[1:], updates[1:], strict=True)), weights[0] * updates[0])


def _ties(updates: list[Tensor], weights: list[float], density: float, seed: int) -> Tensor:
    """Keep the largest, elect a sign, average what agrees."""
    import torch

    kept = []
    for update, weight in zip(updates, weights, strict=True):
        count = max(1, int(density * update.numel()))
        edge = update.abs().flatten().kthvalue(update.numel() - count + 1).values
        kept.append(torch.where(update.abs() >= edge, update, 0.0) * weight)
    together = torch.stack(kept)
    sign = torch.sign(together.sum(0))
    agrees = (torch.sign(together) == sign) & (together != 0)
    share = torch.tensor(weights).abs()[:, None, None]
    mass = (agrees * share).sum(0)
    return torch.where(agrees, together, 0.0).sum(0) / mass.clamp_min(1e-12) * (mass > 0)


def _dare(updates: list[Tensor], weights: list[float], density: float, seed: int) -> Tensor:
    """Drop at random, rescale, add."""
    import torch

    source = torch.Generator().manual_seed(seed)
    dropped = [u * (torch.rand(u.shape, generator=source) < density) / density for u in updates]
    return _weighted(dropped, weights, density, seed)


_MERGES: Mapping[str, Any] = {"weighted": _weighted, "ties": _ties, "dare": _dare}


def _write(target: Path, config: Mapping[str, Any], made: Mapping[str, Any], errors: Mapping[str, float]) -> Made:
    from luthier.core import atomic
    from luthier.methods.modules.adaptation import write_weights

    tensors = {name + A: a for name, (a, _) in made.items()} | {name + B: b for name, (_, b) in made.items()}
    ranks = {a.shape[0] for a, _ in made.values()}
    rank = max(ranks)
    settings = {"r": rank, "lora_alpha": rank, "use_rslora": False, "inference_mode": True, "modules_to_save": None}
    with atomic.publish_folder(target) as staged:
        write_weights(staged, tensors, {**config, **settings})
    return Made(target, dict(errors))
