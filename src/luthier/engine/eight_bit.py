"""A frozen linear layer with eight-bit products, forward and back to the input: what int8 and fp8 share.

y  = x Wᵀ       W by output channel, x by token
dx = g W        W by input channel,  g by token
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor


class EightBitWeight(ABC):
    """Both packings of one frozen weight [out, in], next to the exact weight."""

    most_off: ClassVar[float]
    """‖ŷ − y‖ / ‖y‖ above which a layer's forward had better stay exact."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.forward = self.pack(weight)
        self.backward = self.pack(weight.t())
        self.bias = bias
        self.exact: Tensor | None = None

    @staticmethod
    @abstractmethod
    def pack(weight: Tensor) -> Any:
        """A weight [out, in] in eight bits, as `product` wants it."""

    @staticmethod
    @abstractmethod
    def product(states: Tensor, packed: Any, back: bool = False) -> Tensor:
        """[n, in] → [n, out] in the states' dtype, one scale a token; `back`: the states are gradients."""

    def keep_forward_exact(self, weight: Tensor) -> None:
        """From now on eight bits are for the way back alone."""
        self.exact, self.forward = weight, None

    def __call__(self, states: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        made: Tensor = _Linear.apply(states, self)  # type: ignore[no-untyped-call]
        return made if self.bias is None else made + self.bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: EightBitWeight) -> Tensor:
        ctx.weight = weight
        if weight.exact is not None:
            return torch.nn.functional.linear(states, weight.exact)
        flat = states.reshape(-1, states.shape[-1])
        return weight.product(flat, weight.forward).view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        gradient = incoming[0]
        flat = gradient.reshape(-1, gradient.shape[-1])
        return ctx.weight.product(flat, ctx.weight.backward, back=True).view(*gradient.shape[:-1], -1), None
