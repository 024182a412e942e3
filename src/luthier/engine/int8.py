"""A frozen linear layer in int8: products forward and back to the input, eight-bit weights and activations.

oneDNN's int8 product is about twice as fast as float32 where the processor has one (VNNI; AVX2 less). Lossy: the
gradient's direction must be measured against float32 before it is used. Dynamic scales per token: a scale per tensor
ruins the gradient. Activations take all 8 bits. Without VNNI the processor adds the products of two neighbours in 16
bits (vpmaddubsw), and 2 · 255 · 127 does not fit: there a channel's scale is the least at which no two neighbouring
weights of one sign sum to more than 128. That costs half a bit of the weights; seven bits of either operand cost one,
and of the activations, whose error is the larger, most. Pure torch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from luthier.engine.eight_bit import EightBitWeight

Packed = tuple[Tensor, Tensor, Tensor]
"""Packed int8, scales [out], zero points [out]."""
TOP = 127
PAIR_TOP = 32767 // 255
"""Largest sum of two neighbouring weights of one sign whose products with 255 are added in 16 bits."""


@lru_cache
def summed_in_16_bits() -> str:
    """Products with 255 of which weights this processor adds in 16 bits before it goes on: none, neighbours, or any."""
    if _are_exact((TOP, TOP)):
        return "none"
    return "neighbours" if _are_exact((TOP, PAIR_TOP - TOP), (PAIR_TOP // 2, PAIR_TOP // 2)) else "any"


def _are_exact(*pairs: tuple[int, int]) -> bool:
    """Whether rows of these two weights, in both orders and signs, times 255 are summed without loss."""
    turned = [(sign * one, sign * other) for a, b in pairs for one, other in ((a, b), (b, a)) for sign in (1, -1)]
    weight = torch.tensor([pair * 32 for pair in turned], dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(len(weight)), torch.zeros(len(weight)).long()
    made = _qlinear(torch.full((16, 64), 255, dtype=torch.uint8), 0, packed)
    return torch.equal(made[0], 255.0 * weight.sum(1))


def _qlinear(states: Tensor, zero: int, packed: Packed) -> Tensor:
    weight, scales, zeros = packed
    made: Tensor = torch.ops.onednn.qlinear_pointwise(
        states, 1.0, zero, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return made


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [out, in], scales [out]) of a weight [out, in]: the finest that are multiplied exactly."""
    summed = summed_in_16_bits()
    scales = weight.abs().amax(dim=1).clamp_(min=1e-12) / (PAIR_TOP // 2 if summed == "any" else TOP)
    if summed == "neighbours" and weight.shape[1] > 1:
        even, odd = weight[:, : weight.shape[1] // 2 * 2].reshape(len(weight), -1, 2).unbind(-1)
        sums = (even + odd).abs() * (even.sign() == odd.sign())
        scales = torch.maximum(scales, sums.amax(dim=1) / (PAIR_TOP - 1))  # each may round up by a half
    return (weight / scales[:, None]).round_().to(torch.int8), scales.float().contiguous()


class Int8Weight(EightBitWeight):
    """Both packings of one frozen weight [out, in]."""

    most_off = 0.018
    """Ordinary layers are off by .004 to .016, the last one of a gated MLP by .019 to .023 (docs/log.md)."""

    @staticmethod
    def pack(weight: Tensor) -> Packed:
        """Channel by channel, as oneDNN wants it."""
        rounded, scales = quantized(weight)
        packed = torch.ops.onednn.qlinear_prepack(rounded.contiguous(), None)
        return packed, scales, torch.zeros(len(scales), dtype=torch.int64)

    @staticmethod
    def product(states: Tensor, packed: Packed, back: bool = False) -> Tensor:
        """[n, in] float32 → [n, out] float32, one scale a token."""
        size = states.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12).div_(TOP)
        rounded = torch.div(states, size).add_(TOP + 1.5).to(torch.uint8)  # truncation after +½ rounds
        return _qlinear(rounded, TOP + 1, packed).mul_(size)


def available() -> bool:
    """Whether this torch has oneDNN's int8 product."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.onednn, "qlinear_pointwise")
