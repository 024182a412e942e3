"""Starting values of virtual tokens: random, embeddings of real tokens, or what the model computes on real text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.models.base import Base


def token_ids(base: Base, text: str | None, length: int, generator: torch.Generator) -> Tensor:
    """[P] ids of the text, repeated or cut to P; without a text, ordinary tokens drawn from the vocabulary."""
    if text is None:
        special = set(base.tokenizer.all_special_ids)
        table: Any = base.model.get_input_embeddings()
        size = min(len(base.tokenizer), int(table.weight.shape[0]))
        ordinary = torch.tensor([token for token in range(size) if token not in special])
        return ordinary[torch.randint(len(ordinary), (length,), generator=generator)]
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ModelError(f"the tokenizer makes nothing of {text!r}", where="method.init_text", remedy="another text")
    return torch.tensor((ids * (length // len(ids) + 1))[:length])


@torch.no_grad()
def embeddings(base: Base, ids: Tensor) -> Tensor:
    """[P, hidden] float32, as the model's embedding layer gives them (its scaling included)."""
    table: Any = base.model.get_input_embeddings()
    return table(ids.to(table.weight.device)).float().cpu()


def random(base: Base, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal numbers with the spread of the model's embeddings."""
    table: Any = base.model.get_input_embeddings()
    spread = float(table.weight.float().std())
    return torch.randn(shape, generator=generator) * spread


@torch.no_grad()
def activations(base: Base, ids: Tensor) -> Tensor:
    """[P, width] keys and values that the model itself computes on these tokens (Li & Liang 2021, section 4.3)."""
    device = next(base.model.parameters()).device
    training = base.model.training
    base.model.eval()
    try:
        parts = _from_layers(base, ids.to(device)) if base.kind == "encoder" else _from_cache(base, ids.to(device))
    finally:
        base.model.train(training)
    return torch.cat([part.reshape(len(ids), -1).float().cpu() for part in parts], dim=-1)


def _from_cache(base: Base, ids: Tensor) -> list[Tensor]:
    if base.kind == "encoder_decoder":
        model: Any = base.model
        cache = model(input_ids=ids[None], decoder_input_ids=ids[None], use_cache=True).past_key_values
        layers = cache.self_attention_cache.layers
    else:
        layers = base.anatomy.backbone(input_ids=ids[None], use_cache=True).past_key_values.layers
    return [part[0].transpose(0, 1) for layer in layers for part in (layer.keys, layer.values)]


def _from_layers(base: Base, ids: Tensor) -> list[Tensor]:
    """Encoders keep no cache: the outputs of the key and value projections."""
    names = [name for pair in key_value_names(base) for name in pair]
    seen: dict[str, Tensor] = {}
    handles = [
        base.model.get_submodule(name).register_forward_hook(lambda m, i, out, n=name: seen.__setitem__(n, out[0]))
        for name in names
    ]
    try:
        base.anatomy.backbone(input_ids=ids[None])
    finally:
        for handle in handles:
            handle.remove()
    return [seen[name] for name in names]


def key_value_names(base: Base) -> list[tuple[str, str]]:
    """(key, value) projection of each layer. ModelError for fused projections."""
    inside = tuple(name + "." for name, _ in base.anatomy.cached_attentions)
    roles = base.anatomy.linear_names
    keys, values = ([name for name in roles.get(role, []) if name.startswith(inside)] for role in ("k", "v"))
    if not len(keys) == len(values) == len(inside):
        raise ModelError(
            "this model has no separate key and value projections", where="method", remedy="tied: false, init: random"
        )
    order = {name: index for index, (name, _) in enumerate(base.anatomy.layers)}

    def layer(name: str) -> int:
        return next(index for prefix, index in order.items() if name.startswith(prefix + "."))

    return list(zip(sorted(keys, key=layer), sorted(values, key=layer), strict=True))


def projections(base: Base) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """For each layer: [P, hidden] → (K, V), each [P, kv_heads · head_dim], through the frozen weights."""
    if "qkv" in base.anatomy.linear_names and base.model.config.model_type == "gpt2":
        return [_fused(base.model.get_submodule(name)) for name in base.anatomy.linear_names["qkv"]]
    found = key_value_names(base)
    return [_separate(base.model.get_submodule(k), base.model.get_submodule(v)) for k, v in found]


def _plain(module: Any) -> nn.Module:
    return getattr(module, "base_layer", module)


def _separate(key: Any, value: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    k, v = _plain(key), _plain(value)

    def project(values: Tensor) -> tuple[Tensor, Tensor]:
        given = values.to(next(k.parameters()).dtype)
        return k(given).float(), v(given).float()

    return project


def _fused(module: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    whole = _plain(module)

    def project(values: Tensor) -> tuple[Tensor, Tensor]:
        _, key, value = whole(values.to(next(whole.parameters()).dtype)).float().chunk(3, dim=-1)
        return key, value

    return project
