"""Base weights a second time, in the layout that the processor's own library multiplies fastest.

A decoding step multiplies few rows with large weights, and half of the time of a plain product goes into laying the
weight out anew, each time. oneDNN does that once. Layers that read the same input (query, key, value; gate, up) become
one product, since each costs some 10 µs whatever its size. What all this costs is a copy, so it is done as far as
memory allows, the largest weights (the output layer) first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1 << 16
"""Entries of a weight below which too little is won for a copy."""
ROWS = 16
"""Rows for which the layout is chosen; others are right too."""

MOST_ROWS = 16
"""Rows up to which packed weights are used: oneDNN keeps the code that it makes for each number of rows, so prompts of
all lengths would take ever more memory."""

Product = Callable[[Tensor], Tensor]
"""[..., in] → [..., sum of the layers' outs]."""


def packed(groups: Sequence[Sequence[nn.Linear]], most_bytes: int) -> dict[int, Product]:
    """Number of a group → product of its layers side by side, for float32 layers on a processor, the largest first,
    up to `most_bytes` of copies."""
    operators: Any = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(operators, "_reorder_linear_weight")):
        return {}
    made: dict[int, Product] = {}
    sizes = [sum(layer.weight.numel() for layer in layers) for layers in groups]
    for number in sorted(range(len(groups)), key=lambda one: -sizes[one]):
        size, layers = sizes[number], groups[number]
        if size < SMALLEST or size * 4 > most_bytes or not all(map(_fits, layers)):
            continue
        most_bytes -= size * 4
        with torch.no_grad():
            made[number] = _product(layers, operators)
    return made


def _fits(layer: nn.Linear) -> bool:
    return type(layer) is nn.Linear and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"


def _product(layers: Sequence[nn.Linear], operators: Any) -> Product:
    weights = [layer.weight.detach() for layer in layers]
    laid_out = operators._reorder_linear_weight(torch.cat(weights) if len(weights) > 1 else weights[0], ROWS)
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat(
            [torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers]
        )
    multiply = operators._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        made: Tensor = multiply(x, laid_out, bias, "none", [], "")
        return made

    return product
