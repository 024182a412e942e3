"""LoRA factors under other names: PEFT's ↔ litgpt's and torchtune's. Pure, and good for gradients as well.

PEFT      base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight [r, in], ….lora_B.weight [out, r]
litgpt    transformer.h.N.attn.qkv.lora_A [2·r, in]: A of q above A of v; ….lora_B [out q + out v, r]
torchtune layers.N.attn.q_proj.lora_a.weight, ….lora_b.weight; the rows of B of q in pairs, since torchtune turns
          neighbours where Hugging Face turns a head's halves against each other
"""

from __future__ import annotations

import re
from typing import Any

PEFT = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
LITGPT = "transformer.h.{}.attn.qkv.lora_{}"
TORCHTUNE = "layers.{}.attn.{}_proj.lora_{}.weight"

Tensors = dict[str, Any]


def layers_of(names: Any) -> list[int]:
    """The layers' numbers in names of any of the three."""
    return sorted({int(found[0]) for name in names if (found := re.findall(r"(?:layers|\.h)\.(\d+)\.", name))})


def to_litgpt(factors: Tensors) -> Tensors:
    """From PEFT's names."""
    import torch

    return {
        LITGPT.format(layer, side): torch.cat([factors[PEFT.format(layer, part, side)] for part in "qv"])
        for layer in layers_of(factors)
        for side in "AB"
    }


def from_litgpt(factors: Tensors, queries: int) -> Tensors:
    """To PEFT's names; `queries` are the outputs of the query projection."""
    found = {}
    for layer in layers_of(factors):
        first, second = (factors[LITGPT.format(layer, side)] for side in "AB")
        cut = {"A": (first, len(first) // 2), "B": (second, queries)}
        for side, (both, at) in cut.items():
            found[PEFT.format(layer, "q", side)] = both[:at].contiguous()
            found[PEFT.format(layer, "v", side)] = both[at:].contiguous()
    return found


def to_torchtune(factors: Tensors, heads: int) -> Tensors:
    """From PEFT's names; `heads` of queries."""
    found = {}
    for layer in layers_of(factors):
        for part in "qv":
            first, second = (factors[PEFT.format(layer, part, side)] for side in "AB")
            found[TORCHTUNE.format(layer, part, "a")] = first
            found[TORCHTUNE.format(layer, part, "b")] = in_pairs(second, heads) if part == "q" else second
    return found


def from_torchtune(factors: Tensors, heads: int) -> Tensors:
    """To PEFT's names."""
    found = {}
    for layer in layers_of(factors):
        for part in "qv":
            first, second = (factors[TORCHTUNE.format(layer, part, side)] for side in "ab")
            found[PEFT.format(layer, part, "A")] = first
            found[PEFT.format(layer, part, "B")] = in_halves(second, heads) if part == "q" else second
    return found


def in_pairs(rows: Any, heads: int) -> Any:
    """[heads · size, r]: of each head, row 0, row size/2, row 1, row size/2 + 1, …"""
    outputs, rank = rows.shape
    return rows.view(heads, 2, outputs // heads // 2, rank).transpose(1, 2).reshape(outputs, rank)


def in_halves(rows: Any, heads: int) -> Any:
    """The way back."""
    outputs, rank = rows.shape
    return rows.view(heads, outputs // heads // 2, 2, rank).transpose(1, 2).reshape(outputs, rank)
