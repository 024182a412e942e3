"""Encoder-decoder models: a row's prompt goes into the encoder, its answer through the decoder.

    row        p p p p a a a       targets  - - - a a a -
    encoder    p p p p
    decoder    s a a               (s: the start token), whose three states predict a a a

The decoder's states are put at the flat places whose targets they predict, and zeros elsewhere, so that loss,
evaluation and generation are the same code as for decoder-only models. A row without targets is all prompt.
Virtual tokens: a prompt stands before the encoder's tokens (Lester et al. 2021), a prefix before the decoder's
self-attention, as in PEFT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.types import IGNORE
from luthier.engine.batch import Batch
from luthier.models.base import Base
from luthier.models.forward import Virtual, cache_of


def hidden(base: Base, batch: Batch, virtual: Virtual | None = None) -> Tensor:
    """[T, hidden] after the decoder's final norm, at the places of the batch's flat tokens."""
    edges = list(zip(batch.bounds[:-1].tolist(), batch.bounds[1:].tolist(), strict=True))
    firsts = [_first_predicting(batch.targets, start, stop) for start, stop in edges]
    prompts = [batch.input_ids[start : first + 1] for (start, _), first in zip(edges, firsts, strict=True)]
    memory, seen = encode(base, prompts, virtual)
    begin = batch.input_ids.new_tensor([start_token(base)])
    spoken = [
        torch.cat([begin, batch.input_ids[first + 1 : max(first + 1, stop - 1)]])
        for (_, stop), first in zip(edges, firsts, strict=True)
    ]
    width = max(map(len, spoken))
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=base.pad_id) for row in spoken])
    states = decode(base, ids, memory, seen, fresh_cache(base, virtual, len(ids)))[0]
    made = states.new_zeros(len(batch.input_ids), states.shape[-1])
    places = torch.cat([torch.arange(first, first + len(row)) for first, row in zip(firsts, spoken, strict=True)])
    kept = torch.cat([states[index, : len(row)] for index, row in enumerate(spoken)])
    return made.index_copy(0, places.to(states.device), kept)


def encode(base: Base, prompts: list[Tensor], virtual: Virtual | None) -> tuple[Tensor, Tensor]:
    """(states [S, L, hidden], mask [S, L]) of right-padded prompts, virtual embeddings before them."""
    width = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=base.pad_id) for row in prompts])
    lengths = torch.tensor([len(row) for row in prompts], device=ids.device)
    mask = (torch.arange(width, device=ids.device)[None] < lengths[:, None]).long()
    options: dict[str, Any] = {"input_ids": ids}
    if virtual is not None and virtual.prompt is not None:
        words = base.model.get_input_embeddings()(ids)
        rows = virtual.prompt
        ahead = (rows if rows.dim() == 3 else rows.expand(len(ids), *rows.shape)).to(words.dtype)
        options = {"inputs_embeds": torch.cat([ahead, words], dim=1)}
        mask = torch.cat([mask.new_ones(len(ids), virtual.length), mask], dim=1)
    model: Any = base.model
    return model.get_encoder()(attention_mask=mask, **options).last_hidden_state, mask


def decode(base: Base, ids: Tensor, memory: Tensor, seen: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """(states [S, L, hidden], cache) of decoder tokens that continue what the cache holds. Causal: pads come last."""
    model: Any = base.model
    out = model.get_decoder()(
        input_ids=ids,
        encoder_hidden_states=memory,
        encoder_attention_mask=seen,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state, cache


def fresh_cache(base: Base, virtual: Virtual | None, count: int, always: bool = False) -> Any:
    """An encoder-decoder cache that begins with the prefix; None where there is none and none is asked for.

    `always` is generation: a cache that grows in place.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    from luthier.models.growing_cache import growing

    if virtual is not None and virtual.prefix is not None:
        own = cache_of(virtual, count, next(base.model.parameters()).dtype, in_place=always)
    elif always:
        own = growing()
    else:
        return None
    return EncoderDecoderCache(own, growing() if always else DynamicCache())


def start_token(base: Base) -> int:
    """What the decoder begins with."""
    config: Any = base.model.config
    found = getattr(config, "decoder_start_token_id", None)
    return int(base.pad_id if found is None else found)


def _first_predicting(targets: Tensor, start: int, stop: int) -> int:
    """Flat place of the first token that has a target; the last place of a row without any."""
    found = (targets[start:stop] != IGNORE).nonzero()
    return start + int(found[0]) if len(found) else stop - 1
