"""A frozen linear layer in int8: products forward and back to the input, eight-bit weights and activations.

    y  = x Wᵀ       W by output channel, x by token
    dx = g W        W by input channel,  g by token

oneDNN's int8 product is about twice as fast as float32 where the processor has one (VNNI; AVX2 less). Lossy: the
gradient's direction must be measured against float32 before it is used. Dynamic scales per token: a scale per tensor
ruins the gradient. Activations take 8 bits with VNNI and 7 without, where pairs of products are added in 16 bits and
would overflow. Pure torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

WEIGHT_TOP = 127


class Int8Weight:
    """Both packings of one frozen weight [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.forward = _packed(weight)
        self.backward = _packed(weight.t())
        self.bias = bias

    def __call__(self, states: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        made: Tensor = _Int8Linear.apply(states, self)  # type: ignore[no-untyped-call]
        return made if self.bias is None else made + self.bias


@lru_cache
def activation_top() -> int:
    """127 where 255 · 127 is summed exactly, else 63."""
    ones, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int64)
    weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), WEIGHT_TOP, dtype=torch.int8), None)
    states = torch.full((16, 64), 255, dtype=torch.uint8)
    made = _qlinear(states, 0, (weight, ones, zeros))
    return 127 if float(made[0, 0]) == 255.0 * WEIGHT_TOP * 64 else 63


def _qlinear(states: Tensor, zero: int, packed: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    weight, scales, zeros = packed
    made: Tensor = torch.ops.onednn.qlinear_pointwise(
        states, 1.0, zero, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return made


def _packed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(packed int8, scales [out], zero points [out])."""
    scales = weight.abs().amax(dim=1).clamp_(min=1e-12) / WEIGHT_TOP
    rounded = (weight / scales[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(rounded.contiguous(), None)
    return packed, scales.float().contiguous(), torch.zeros(len(scales), dtype=torch.int64)


def product(states: Tensor, packed: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """[n, in] float32 → [n, out] float32, one scale a token."""
    top = activation_top()
    size = states.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12).div_(top)
    rounded = torch.div(states, size).add_(top + 1.5).to(torch.uint8)  # truncation after +½ rounds
    return _qlinear(rounded, top + 1, packed).mul_(size)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Int8Weight) -> Tensor:
        ctx.weight = weight
        flat = states.reshape(-1, states.shape[-1])
        return product(flat, weight.forward).view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        gradient = incoming[0]
        flat = gradient.reshape(-1, gradient.shape[-1])
        return product(flat, ctx.weight.backward).view(*gradient.shape[:-1], -1), None


def available() -> bool:
    """Whether this torch has oneDNN's int8 product."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.onednn, "qlinear_pointwise")
