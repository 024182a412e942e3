"""A frozen linear layer in fp8 (e4m3) on a GPU: products forward and back to the input. The twin of `engine.int8`.

Weights get their scales once, tokens at each product: a scale per tensor ruins the gradient. The product is
`torch._scaled_mm` with a scale for each row of both sides. Lossy: the gradient's direction must be measured against the
exact one before it is used. **Unmeasured**: no GPU has run it; its logic is tested on a CPU, where torch has the same
product. Pure torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.engine.eight_bit import EightBitWeight

FORMAT = torch.float8_e4m3fn
"""Four bits of exponent and three of mantissa for weights, tokens and gradients alike: each row has its own scale."""
LEAST_CAPABILITY = (8, 9)
"""Ada; Hopper is (9, 0)."""
MULTIPLE = 16
"""The product on a GPU takes both widths in steps of 16 only."""


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


class Fp8Weight(EightBitWeight):
    """Both packings of one frozen weight [out, in]."""

    most_off = 0.08
    """Three bits of mantissa are off by some .036 whatever the activations look like: only something odd is above."""

    @staticmethod
    def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, k] → (e4m3 as [k, rows], column by column as the product wants it; scales [1, rows])."""
        rounded, scales = _rounded(weight)
        return rounded.t(), scales.t().contiguous()

    @staticmethod
    def product(states: Tensor, packed: tuple[Tensor, Tensor], back: bool = False) -> Tensor:
        """[n, k] → [n, rows] in the states' dtype, one scale a token.

        Forward, Hopper keeps its sums in fewer bits, which is faster; gradients get all. A GPU writes nothing but
        bfloat16 where rows have scales.
        """
        weight, scales = packed
        rounded, sizes = _rounded(states)
        out = states.dtype if states.device.type == "cpu" else torch.bfloat16
        made: Tensor = torch._scaled_mm(
            rounded, weight, scale_a=sizes, scale_b=scales, out_dtype=out, use_fast_accum=not back
        )
        return made.to(states.dtype)
