"""A frozen linear layer in fp8 (e4m3) on a GPU: products forward and back to the input. The twin of `engine.int8`.

    y  = x Wᵀ       W by output channel, x by token
    dx = g W        W by input channel,  g by token

Weights get their scales once, tokens at each product: a scale per tensor ruins the gradient. The product is
`torch._scaled_mm` with a scale for each row of both sides. Lossy: the gradient's direction must be measured against the
exact one before it is used. **Unmeasured**: no GPU has run it; its logic is tested on a CPU, where torch has the same
product. Pure torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FORMAT = torch.float8_e4m3fn
"""Four bits of exponent and three of mantissa for weights, tokens and gradients alike: each row has its own scale."""
LEAST_CAPABILITY = (8, 9)
"""Ada; Hopper is (9, 0)."""
MULTIPLE = 16
"""The product on a GPU takes both widths in steps of 16 only."""


class Fp8Weight:
    """Both packings of one frozen weight [out, in]: eight bits each, next to the exact weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.forward = _packed(weight)
        self.backward = _packed(weight.t())
        self.bias = bias

    def __call__(self, states: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        made: Tensor = _Fp8Linear.apply(states, self)  # type: ignore[no-untyped-call]
        return made if self.bias is None else made + self.bias


def available(device: torch.device) -> bool:
    """Whether this device has fp8 products."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def fits(weight: Tensor) -> bool:
    """Whether a weight [out, in] has widths that the product takes."""
    return all(size % MULTIPLE == 0 for size in weight.shape)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, k] → (e4m3 [n, k], scales [n, 1] float32), the largest of each row at the top of the format."""
    real = rows.float()
    scales = real.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / torch.finfo(FORMAT).max
    return (real / scales).to(FORMAT).contiguous(), scales


def _packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, k] → (e4m3 as [k, rows], column by column as the product wants it; scales [1, rows])."""
    rounded, scales = _rounded(weight)
    return rounded.t(), scales.t().contiguous()


def product(states: Tensor, packed: tuple[Tensor, Tensor], fast: bool = True) -> Tensor:
    """[n, k] → [n, rows] in the states' dtype, one scale a token. `fast`: Hopper keeps its sums in fewer bits.

    A GPU writes nothing but bfloat16 where rows have scales.
    """
    weight, scales = packed
    rounded, sizes = _rounded(states)
    out = states.dtype if states.device.type == "cpu" else torch.bfloat16
    made: Tensor = torch._scaled_mm(rounded, weight, scale_a=sizes, scale_b=scales, out_dtype=out, use_fast_accum=fast)
    return made.to(states.dtype)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Fp8Weight) -> Tensor:
        ctx.weight = weight
        flat = states.reshape(-1, states.shape[-1])
        return product(flat, weight.forward).view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        gradient = incoming[0]
        flat = gradient.reshape(-1, gradient.shape[-1])
        return product(flat, ctx.weight.backward, fast=False).view(*gradient.shape[:-1], -1), None
