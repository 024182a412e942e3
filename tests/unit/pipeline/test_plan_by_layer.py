"""Trained numbers by layer: every weight is in one place, and the places add up."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from luthier.pipeline.plan import by_layer


def test_weights_are_counted_where_they_are() -> None:
    """PEFT's names, names of a stack's parts, and a layer 1 beside a layer 10."""
    layers = [(f"model.layers.{index}", None) for index in range(11)]
    base = SimpleNamespace(anatomy=SimpleNamespace(layers=layers))
    weights = {
        "base_model.model.model.layers.1.mlp.lora_A.weight": torch.zeros(2, 3),
        "0.base_model.model.model.layers.10.mlp.lora_A.weight": torch.zeros(4),
        "model.layers.1.norm.weight": torch.zeros(5),
        "prompt_embeddings": torch.zeros(7),
    }
    assert by_layer(base, weights) == {"model.layers.1": 11, "model.layers.10": 4, "elsewhere": 7}
