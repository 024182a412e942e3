"""`train.int8_base`: the frozen linear layers of the blocks compute in eight bits while training; all else stays exact.

int8 on a CPU, fp8 on a GPU that has it (from Ada and Hopper on; unmeasured). Evaluation, samples, health and the saved
adapter see the untouched base. Before training, real rows go through both ways. A layer whose eight-bit output is too
far off (the last one of a gated MLP: few large activations, and the many small ones round to zero) keeps its exact
forward and has eight bits on the way back alone. Then the gradient is held against the exact one: under a cosine of
0.99 more forwards stay exact, the coarsest first, and where that does not help eight bits are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.core.events import Emit, silent
from luthier.core.types import Row
from luthier.engine import fp8, int8
from luthier.engine.batch import from_rows
from luthier.engine.eight_bit import EightBitWeight
from luthier.models.base import Base

COSINE = 0.99
"""Least cosine between the eight-bit gradient and the exact one."""
SHARES = 6
"""Of the layers, a sixth more keep their exact forward at each try."""


def packing(base: Base) -> type[EightBitWeight]:
    """How this base's weights are packed, by what its device can do; ModelError where it can do neither."""
    weight = next(base.model.parameters())
    if weight.device.type == "cuda":
        if not fp8.available(weight.device):
            what = "this GPU has no fp8 products (Ada, Hopper and later have them)"
            raise ModelError(what, where="train.int8_base", remedy="int8_base: false")
        return fp8.Fp8Weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ModelError("int8 needs a float32 base on the CPU", where="train.int8_base", remedy="int8_base: false")
    if not int8.available():
        raise ModelError("this torch has no oneDNN int8", where="train.int8_base", remedy="int8_base: false")
    return int8.Int8Weight


def pack(base: Base) -> dict[nn.Linear, EightBitWeight]:
    """Every frozen linear layer of the blocks with its eight-bit weight."""
    form = packing(base)
    made: dict[nn.Linear, EightBitWeight] = {}
    for _, layer in base.anatomy.layers:
        for name, module in layer.named_modules():
            if type(module) is not nn.Linear or "lora_" in name or module.weight.requires_grad:
                continue
            if form is int8.Int8Weight or fp8.fits(module.weight):
                made[module] = form(module.weight.detach(), None if module.bias is None else module.bias.detach())
    if not made:
        raise ModelError("no frozen linear layer", where="train.int8_base", remedy="int8_base: false")
    return made


def install(layers: dict[nn.Linear, EightBitWeight]) -> None:
    """Give these layers their eight-bit weight for training."""
    for module, packed in layers.items():
        _override(module, packed)


def _override(module: nn.Linear, packed: EightBitWeight) -> None:
    exact = module.forward

    def forward(states: Tensor) -> Tensor:
        return packed(states) if module.training else exact(states)

    module.__dict__["forward"] = forward


def remove(base: Base) -> None:
    """The layers' own forwards again."""
    for _, layer in base.anatomy.layers:
        for module in layer.modules():
            if type(module) is nn.Linear:
                module.__dict__.pop("forward", None)


def install_checked(adapted: Any, rows: Sequence[Row], emit: Emit = silent) -> float:
    """Install as many eight-bit products as these rows' gradient bears, or refuse. Returns its cosine."""
    layers = pack(adapted.base)
    with _off_by(layers) as errors:
        exact = _gradient(adapted, rows)
    coarsest = sorted(layers, key=lambda module: errors.get(module, 0.0), reverse=True)
    kept = sum(errors.get(module, 0.0) > packed.most_off for module, packed in layers.items())
    install(layers)
    while True:
        for module in coarsest[:kept]:
            layers[module].keep_forward_exact(module.weight.detach())
        found = _cosine(exact, _gradient(adapted, rows))
        if found >= COSINE:
            break
        if kept == len(layers):
            remove(adapted.base)
            raise ModelError(
                f"the eight-bit gradient has a cosine of {found:.4f} with the exact one, under {COSINE}",
                where="train.int8_base",
                remedy="int8_base: false",
            )
        kept = min(len(layers), kept + -(-len(layers) // SHARES))
    form = "fp8" if packing(adapted.base) is fp8.Fp8Weight else "int8"
    emit("int8", layers=len(layers), exact_forwards=kept, cosine=found, least=COSINE, form=form)
    return found


@contextmanager
def _off_by(layers: dict[nn.Linear, EightBitWeight]) -> Iterator[dict[nn.Linear, float]]:
    """Inside, what goes through these layers goes through eight bits too: ‖ŷ − y‖ / ‖y‖ of the last call."""
    errors: dict[nn.Linear, float] = {}

    def compare(module: nn.Linear, given: tuple[Tensor, ...], made: Tensor) -> None:
        with torch.no_grad():
            product = made if module.bias is None else made - module.bias
            errors[module] = float((layers[module](given[0]) - made).norm() / product.norm().clamp(min=1e-30))

    hooks = [module.register_forward_hook(compare) for module in layers]
    try:
        yield errors
    finally:
        for hook in hooks:
            hook.remove()


def _gradient(adapted: Any, rows: Sequence[Row]) -> Tensor:
    """All trained gradients as one vector, in training mode without dropout noise: the seed is set before."""
    from luthier.core.seeding import seed_everything

    weights = adapted.parameters_by_name()
    seed_everything(0)
    adapted.train()
    adapted.loss(from_rows(list(rows))).total.backward()
    parts = [weight.grad.flatten() for weight in weights.values() if weight.grad is not None]
    for weight in weights.values():
        weight.grad = None
    adapted.eval()
    return torch.cat(parts).double()


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()).clamp(min=1e-30))
