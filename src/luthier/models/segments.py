"""The flat layout through Hugging Face models: segment attention behind transformers' own attention interface.

Any model whose layers look their attention up in that interface and take `position_ids` runs unmodified. Others
(recurrent mixers, ALiBi, attention sinks, windows that stand in the mask only) are refused here, and `selfcheck`
falls back to padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.engine.attention import Segments, segment_attention
from luthier.engine.batch import Batch
from luthier.engine.sharing import Shared, share
from luthier.engine.shifted import Shifted, shifted_attention
from luthier.models.base import Base

if TYPE_CHECKING:
    from luthier.models.forward import Virtual

NAME = "luthier_segments"


@dataclass(frozen=True)
class _Step:
    segments: Segments
    causal: bool
    prefix: list[tuple[Tensor, Tensor]] | None
    shifted: Shifted | None = None
    local_layers: frozenset[int] = frozenset()
    """Layers that see a window only, and so must say which."""


_CURRENT: list[_Step] = []
Watcher = Callable[[int, Tensor, Tensor, dict[str, Any]], None]
"""(layer, query [heads, T, d], key [kv_heads, P + T, d], options of the attention) of every attention call."""
_WATCHERS: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Inside: `watcher` sees the queries and keys of every flat forward of one row (rotated, a prefix first)."""
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: query [1, heads, T, d] → ([1, T, heads, d], None)."""
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise ModelError("attention sinks and position biases do not fit the flat layout", remedy="train.engine: plain")
    step = _CURRENT[-1]
    layer = getattr(module, "layer_idx", None)
    if sliding_window is None and layer in step.local_layers:
        what = "this architecture puts its sliding window or chunks into the mask, which flat batches do not have"
        raise ModelError(what, where="train.engine", remedy="train.engine: plain")
    prefix = None if step.prefix is None else step.prefix[int(layer or 0)]
    for watcher in _WATCHERS:
        ahead = [] if prefix is None else [prefix[0].reshape(-1, *prefix[0].shape[-2:]).transpose(0, 1).to(key.dtype)]
        told = {"causal": step.causal, "scale": scaling, "window": sliding_window, "softcap": softcap}
        watcher(int(layer or 0), query[0], torch.cat([*ahead, key[0]], dim=1), told)
    options: dict[str, Any] = {
        "causal": step.causal,
        "scale": scaling,
        "window": sliding_window,
        "softcap": softcap,
        "dropout": dropout,
        "prefix": prefix,
    }
    if step.shifted is not None:
        return shifted_attention(query[0], key[0], value[0], step.shifted, **options)[None], None
    return segment_attention(query[0], key[0], value[0], step.segments, **options)[None], None


_OPAQUE: list[Any] = []
"""The attention as compiled layers see it, while there are any."""


def make_opaque(on: bool) -> None:
    """Whether compiled layers stop before the attention and go on behind it. (Loads torch's compiler.)"""
    _OPAQUE[:] = [torch.compiler.disable(_attention)] if on else []


def register() -> None:
    """Make the function known to transformers (idempotent)."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _OPAQUE[-1] if _OPAQUE else _attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextmanager
def _using(base: Base, step: _Step) -> Iterator[None]:
    """The model's attention is ours inside, and its own again outside."""
    register()
    configs = _configs(base.model)
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    _CURRENT.append(step)
    try:
        yield
    finally:
        _CURRENT.pop()
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def contexts(base: Base) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For activation checkpointing: a layer is recomputed in the backward, when its forward's step is long over."""
    again = _using(base, _CURRENT[-1]) if _CURRENT else nullcontext()
    return nullcontext(), again


def replaceable(base: Base) -> bool:
    """Whether the model calls its attention through transformers' interface; others would go on with their own."""
    return bool(getattr(base.model, "_supports_attention_backend", False))


def _configs(model: Any) -> list[Any]:
    """Every config object that a layer of this model looks its attention up in."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return list(found.values())


def hidden(base: Base, batch: Batch, virtual: Virtual | None) -> Tensor:
    """[T, hidden] of the flat batch; see `models.forward.hidden`."""
    if base.kind == "encoder_decoder":
        raise ModelError("encoder-decoder models do not fit the flat layout", remedy="train.engine: plain")
    if base.anatomy.position_kind in ("alibi", "t5"):
        raise ModelError(f"{base.anatomy.position_kind} positions do not fit the flat layout", remedy="engine: plain")
    if not replaceable(base):
        what = f"the attention of {type(base.model).__name__} cannot be replaced: no flat layout"
        raise ModelError(what, remedy="train.engine: plain")
    extra = 0 if virtual is None else virtual.length
    bounds = batch.bounds.tolist()
    positions = batch.position_ids + (extra if base.kind == "decoder" or extra else 0)
    options: dict[str, Any] = {"input_ids": batch.input_ids[None]}
    prefix = None if virtual is None else virtual.prefix
    keep = None
    if virtual is not None and virtual.prompt is not None:
        options, positions, bounds, keep = _spliced(base, batch, virtual)
    shared = _shared(base, batch, virtual)
    parents: tuple[int, ...] = ()
    if shared is not None:
        options["input_ids"], positions = shared.input_ids[None], shared.position_ids + extra
        bounds, parents, keep = list(shared.bounds), shared.parents, shared.back
    size = len(positions)
    if base.token_step and base.model.training and "input_ids" in options and not _own_prefixes(virtual):
        options["input_ids"], positions, bounds = _to_budget(base, options["input_ids"], positions, bounds)
        parents = (*parents, -1) if parents and len(positions) > size else parents
    accepted = inspect.signature(base.anatomy.backbone.forward).parameters
    if "position_ids" not in accepted and "kwargs" not in accepted:
        raise ModelError(f"{type(base.anatomy.backbone).__name__} takes no position_ids", remedy="train.engine: plain")
    options["position_ids"] = positions[None] + _first_position(base)
    if base.kind == "decoder":
        options["use_cache"] = False
    kept = base.trunk.step(batch) if base.trunk is not None and base.model.training else nullcontext()
    segments = Segments.of(bounds, parents)
    group = base.shifted_attention if base.model.training else None
    shifted = None if group is None else Shifted.of(segments, group)
    with kept, _using(base, _Step(segments, base.kind == "decoder", prefix, shifted, base.anatomy.local_layers)):
        out = base.anatomy.backbone(attention_mask=None, **options).last_hidden_state[0]
    return out[:size] if keep is None else out[keep]


def _to_budget(base: Base, ids: Tensor, positions: Tensor, bounds: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Ids [1, T] and positions [T] with a segment of padding behind, so that T is a multiple of `token_step`."""
    more = -len(positions) % int(base.token_step or 1)
    if not more:
        return ids, positions, bounds
    filled = torch.full((1, more), base.pad_id, dtype=ids.dtype, device=ids.device)
    places = torch.arange(more, dtype=positions.dtype, device=positions.device)
    return torch.cat([ids, filled], 1), torch.cat([positions, places]), [*bounds, bounds[-1] + more]


def _shared(base: Base, batch: Batch, virtual: Virtual | None) -> Shared | None:
    """The batch as a trie, where sharing is on and every row has the same virtual tokens before it."""
    if not base.shared_prefix or base.kind != "decoder" or base.trunk is not None:
        return None
    if _own_prefixes(virtual) or (virtual is not None and virtual.prompt is not None):
        return None
    return share(batch)


def _own_prefixes(virtual: Virtual | None) -> bool:
    """Whether every row has virtual keys of its own."""
    return virtual is not None and any(key.dim() == 4 for key, _ in virtual.prefix or ())


def _first_position(base: Base) -> int:
    """RoBERTa counts positions from padding_idx + 1."""
    return 2 if base.model.config.model_type in ("roberta", "xlm-roberta") else 0


def _spliced(base: Base, batch: Batch, virtual: Virtual) -> tuple[dict[str, Any], Tensor, list[int], Tensor]:
    """Prompt embeddings before every segment: (inputs, positions, bounds, places of the real tokens)."""
    words = base.model.get_input_embeddings()(batch.input_ids)
    prompt = virtual.prompt
    assert prompt is not None
    parts, positions, keep, bounds = [], [], [], [0]
    for index, (start, stop) in enumerate(zip(batch.bounds.tolist(), batch.bounds.tolist()[1:], strict=False)):
        rows = prompt[index] if prompt.dim() == 3 else prompt
        parts += [rows.to(words.dtype), words[start:stop]]
        size = len(rows) + stop - start
        keep.append(torch.arange(bounds[-1] + len(rows), bounds[-1] + size))
        positions.append(torch.arange(size))
        bounds.append(bounds[-1] + size)
    device = words.device
    return (
        {"inputs_embeds": torch.cat(parts)[None]},
        torch.cat(positions).to(device),
        bounds,
        torch.cat(keep).to(device),
    )
