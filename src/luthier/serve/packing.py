"""Base weights a second time, in the layout that the processor's own library multiplies fastest.

A decoding step multiplies few rows with large weights, and half of the time of a plain product goes into laying the
weight out anew, each time. oneDNN does that once. What it costs is a copy, so it is done as far as memory allows,
the largest weights (the output layer) first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1 << 20
"""Entries of a weight below which too little is won for a copy."""
ROWS = 16
"""Rows for which the layout is chosen; others are right too."""


def packed(layers: Iterable[nn.Linear], most_bytes: int) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """layer → its product, for float32 layers on a processor, the largest first, up to `most_bytes` of copies."""
    operators: Any = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(operators, "_reorder_linear_weight")):
        return {}
    made: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    for layer in sorted(layers, key=lambda one: -one.weight.numel()):
        weight = layer.weight
        fits = type(layer) is nn.Linear and weight.dtype == torch.float32 and weight.device.type == "cpu"
        if not fits or weight.numel() < SMALLEST or weight.numel() * 4 > most_bytes:
            continue
        most_bytes -= weight.numel() * 4
        with torch.no_grad():
            made[layer] = _product(layer, operators._reorder_linear_weight(weight.detach(), ROWS), operators)
    return made


def _product(layer: nn.Linear, laid_out: Tensor, operators: Any) -> Callable[[Tensor], Tensor]:
    bias = None if layer.bias is None else layer.bias.detach()
    multiply = operators._linear_pointwise

    def product(x: Tensor) -> Tensor:
        made: Tensor = multiply(x.reshape(-1, x.shape[-1]), laid_out, bias, "none", [], "")
        return made.view(*x.shape[:-1], made.shape[-1])

    return product
