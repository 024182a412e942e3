"""Longer tables of learned positions. transformers 5.23 raises NotImplementedError for all of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.core.errors import ModelError

RESERVED = {"opt": 2, "roberta": 2}
"""Rows at the start of the table that are no positions: OPT looks up position + 2, RoBERTa padding_idx + 1 = 2."""

_TABLES = ("wpe", "embed_positions", "position_embeddings")


def position_table(model: nn.Module) -> tuple[nn.Module, str, nn.Embedding]:
    """(parent, attribute, table) of the learned positions."""
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in _TABLES and isinstance(module, nn.Embedding):
            return model.get_submodule(name.rpartition(".")[0]), leaf, module
    raise ModelError("this model has no learned position table", where="context")


def longer_table(table: Tensor, reserved: int, length: int, how: str, seed: int) -> Tensor:
    """[reserved + length, width] from [reserved + L0, width], in the table's dtype and device.

    interpolate maps the new ends onto the old ends (align_corners), so no two positions are identical.
    """
    head, body = table[:reserved], table[reserved:]
    old = len(body)
    if how == "interpolate":
        flat = body.float().t()[None]
        made = functional.interpolate(flat, size=length, mode="linear", align_corners=True)[0].t()
        return torch.cat([head, made.to(table.dtype)])
    if how == "tile":
        return torch.cat([head, body[torch.arange(length, device=table.device) % old]])
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(length - old, body.shape[1], generator=source).to(table.device)
    fresh = body.float().mean(0) + noise * body.float().std(0)
    return torch.cat([head, body, fresh.to(table.dtype)])


def _keep_promise(old: Tensor, new: Tensor, reserved: int, how: str) -> None:
    """tile and random leave every old row as it was; interpolate keeps both ends and repeats no row."""
    if how == "interpolate":
        kept = torch.allclose(new[[reserved, -1]], old[[reserved, -1]], atol=1e-5, rtol=1e-3)
    else:
        kept = torch.equal(new[: len(old)], old)
    if not kept:
        raise ModelError(f"{how} changed position rows that it promised to keep", where="context")


def resize_positions(model: nn.Module, plan: Mapping[str, Any], seed: int = 0) -> None:
    """Replace the table in place and set the config's length and the index buffers that hang on it."""
    config: Any = model.config
    parent, _, old = position_table(model)
    reserved = RESERVED.get(config.model_type, 0)
    resize = plan["resize"]
    weight = longer_table(old.weight.data, reserved, int(resize["length"]), str(resize["how"]), seed)
    _keep_promise(old.weight.data, weight, reserved, str(resize["how"]))
    old.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    old.num_embeddings = len(weight)
    for key, value in plan["config"].items():
        setattr(config, key, value)
    rows = len(weight)
    buffers = dict(parent.named_buffers(recurse=False))
    if "position_ids" in buffers:
        indices = torch.arange(rows, device=weight.device).expand(1, -1)
        parent.register_buffer("position_ids", indices, persistent=False)
    if "token_type_ids" in buffers:
        zeros = torch.zeros(1, rows, dtype=torch.int64, device=weight.device)
        parent.register_buffer("token_type_ids", zeros, persistent=False)
