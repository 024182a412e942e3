"""One forward for everything: batch in, hidden states of its flat tokens out, whatever the layout inside.

    flat    one row [1, T], segments isolated by the registered attention (`models.segments`)
    padded  [B, L] with a mask; right-padded

Position ids are always explicit, and with virtual tokens the real ones start at P, as in PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.core.types import IGNORE
from luthier.engine.batch import Batch, Padded, padded
from luthier.engine.loss import chunked_nll
from luthier.models import changing_rope
from luthier.models.base import Base


@dataclass(frozen=True)
class Virtual:
    """What a method puts before the tokens: keys and values in each layer, or embeddings, or neither.

    `prefix`: per layer (K, V), each [P, kv_heads, head_dim] or [S, P, kv_heads, head_dim] (one for each row);
    `prompt`: [P, hidden] or [S, P, hidden]. `length` is P.
    """

    prefix: list[tuple[Tensor, Tensor]] | None = None
    prompt: Tensor | None = None
    length: int = 0


def hidden(
    base: Base, batch: Batch, virtual: Virtual | None = None, layout: str = "padded", checkpointing: bool = False
) -> Tensor:
    """[T, hidden] after the final norm, in the order of the batch's flat tokens.

    Raises ModelError when rows are longer than the window that virtual tokens leave.
    """
    length = 0 if virtual is None else virtual.length
    longest = max(batch.lengths)
    if longest + length > base.anatomy.window:
        raise ModelError(
            f"a row of {longest} tokens and {length} virtual ones do not fit the window of {base.anatomy.window}",
            where="data.max_length",
            remedy=f"at most {base.anatomy.window - length}",
        )
    _set_checkpointing(base, checkpointing and torch.is_grad_enabled())
    within = base.anatomy.rope_constant_within
    if within is None:
        return _in_layout(base, batch, virtual, layout)
    return changing_rope.row_by_row(
        base.model, batch, virtual, within, lambda rows, ahead: _in_layout(base, rows, ahead, layout)
    )


def _in_layout(base: Base, batch: Batch, virtual: Virtual | None, layout: str) -> Tensor:
    on_encoder = base.kind == "encoder" and virtual is not None and virtual.prefix is not None
    if layout == "flat" or on_encoder:  # transformers' encoders take no keys and values from outside
        from luthier.models import segments

        return segments.hidden(base, batch, virtual)
    return _padded(base, batch, virtual)


def _set_checkpointing(base: Base, on: bool) -> None:
    if bool(getattr(base.model, "is_activation_checkpointing", False)) == on:
        return
    if on:
        from luthier.models import segments

        base.model.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: segments.contexts(base)}
        )
        # transformers lets gradients in at the embeddings, which only re-entrant recomputation needs: frozen layers
        # below the lowest adapter would be recomputed and gone back through for nothing
        base.model.disable_input_require_grads()
    else:
        base.model.activation_checkpointing_disable()


def _padded(base: Base, batch: Batch, virtual: Virtual | None) -> Tensor:
    if base.kind == "encoder_decoder":
        from luthier.models import seq2seq

        return seq2seq.hidden(base, batch, virtual)
    laid = padded(batch, base.pad_id)
    extra = 0 if virtual is None else virtual.length
    mask, positions = laid.attention_mask, laid.position_ids + extra
    count = len(batch.row_ids)
    options: dict[str, Any] = {}
    if virtual is not None and extra:
        ahead = torch.ones(count, extra, dtype=mask.dtype, device=mask.device)
        mask = torch.cat([ahead, mask], dim=1)
    if virtual is not None and virtual.prompt is not None:
        return _with_prompt(base, laid, virtual, mask, count)
    if virtual is not None and virtual.prefix is not None:
        options["past_key_values"] = cache_of(virtual, count, next(base.model.parameters()).dtype)
    if base.kind == "encoder":
        options |= _position_option(base, laid)
    else:
        options |= {"position_ids": positions, "use_cache": bool(options)}
    out = base.anatomy.backbone(input_ids=laid.input_ids, attention_mask=mask, **options).last_hidden_state
    return out.reshape(-1, out.shape[-1])[laid.flat]


def _position_option(base: Base, laid: Padded) -> dict[str, Tensor]:
    """Encoders number their positions themselves where the class knows the pad (RoBERTa) or is right-padded."""
    return {"position_ids": laid.position_ids} if base.model.config.model_type == "bert" else {}


def _with_prompt(base: Base, laid: Padded, virtual: Virtual, mask: Tensor, count: int) -> Tensor:
    table = base.model.get_input_embeddings()
    words = table(laid.input_ids)
    prompt = virtual.prompt
    assert prompt is not None
    ahead = (prompt if prompt.dim() == 3 else prompt.expand(count, *prompt.shape)).to(words.dtype)
    embeds = torch.cat([ahead, words], dim=1)
    first = torch.arange(virtual.length, device=mask.device).expand(count, -1)
    positions = torch.cat([first, laid.position_ids + virtual.length], dim=1)
    options: dict[str, Any] = {"use_cache": False} if base.kind == "decoder" else {}
    out = base.anatomy.backbone(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **options)
    kept = out.last_hidden_state[:, virtual.length :]
    return kept.reshape(-1, kept.shape[-1])[laid.flat]


def cache_of(virtual: Virtual, count: int, dtype: torch.dtype, in_place: bool = False) -> Any:
    """The prefix as transformers' cache: [count, kv_heads, P, head_dim] a layer. `in_place` has no gradients."""
    from transformers import DynamicCache

    from luthier.models.growing_cache import growing

    cache = growing() if in_place else DynamicCache()
    for layer, (key, value) in enumerate(virtual.prefix or ()):
        parts = []
        for part in (key, value):
            rows = part if part.dim() == 4 else part.expand(count, *part.shape)
            parts.append(rows.transpose(1, 2).to(dtype))
        cache.update(parts[0], parts[1], layer)
    return cache


def logits(base: Base, states: Tensor) -> Tensor:
    """[N, vocabulary] from [N, hidden], with the architecture's scale and soft cap."""
    head = base.anatomy.head
    if head is None:
        raise ModelError("this model has no language-modelling head")
    weight: Any = getattr(head[1], "weight", None)  # of a trained head: what it computes with, not its float32 master
    dtype = weight.dtype if weight is not None and weight.is_floating_point() else states.dtype
    made = head[1](states.to(dtype))
    if base.anatomy.logit_scale != 1:
        made = made * base.anatomy.logit_scale
    cap = base.anatomy.logit_softcap
    return torch.tanh(made / cap) * cap if cap else made


def token_nll(base: Base, states: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """[N] float32 negative log-likelihoods; IGNORE targets cost nothing and give 0. Differentiable."""
    return token_scores(base, states, targets, label_smoothing, z_loss, hits=False)[0]


def token_scores(
    base: Base, states: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0, hits: bool = True
) -> tuple[Tensor, Tensor]:
    """([N] losses, [N] bool: the most likely token is the target; False where nothing is supervised or asked)."""
    keep = (targets != IGNORE).nonzero().flatten()
    losses = torch.zeros(len(targets), dtype=torch.float32, device=states.device)
    right = torch.zeros(len(targets), dtype=torch.bool, device=states.device)
    if not len(keep):
        return losses + states.sum().float() * 0.0, right
    head = base.anatomy.head
    if head is None:
        raise ModelError("this model has no language-modelling head")
    made, hit = chunked_nll(
        states[keep],
        targets[keep],
        head[1],
        scale=base.anatomy.logit_scale,
        softcap=base.anatomy.logit_softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        hits=hits,
    )
    return losses.index_copy(0, keep, made), right.index_copy(0, keep, hit)


def row_logits(
    base: Base, batch: Batch, states: Tensor | None = None, virtual: Virtual | None = None, layout: str = "padded"
) -> Tensor:
    """[S, labels]: the head on the last real token (decoders) or through the encoder's own pooling."""
    if states is None:
        states = hidden(base, batch, virtual, layout)
    model: Any = base.model
    if hasattr(model, "score"):
        return model.score(states[batch.bounds[1:].to(states.device) - 1])
    from luthier.models import row_head

    if base.kind == "decoder":
        raise row_head.unknown(model)
    return row_head.encoder_logits(model, states, batch.bounds)
