"""Does this model fit this task? Told from its config before any weight is loaded, and proved on a short row after."""

from __future__ import annotations

from typing import Any

import torch

from luthier.core.errors import ModelError
from luthier.models import anatomy
from luthier.models.base import Base
from luthier.models.load import resolve
from luthier.models.settings import ModelSettings

PROOF_TOKENS = 8
"""Length of the rows that proofs send through a model."""


def refuse_task(settings: ModelSettings, task: str, has_head: bool) -> None:
    """ModelError where the architecture cannot do the task; reads config.json only."""
    from luthier.models.load import architecture

    config = architecture(resolve(settings.path))
    kind = anatomy.kind_of_config(config)
    if kind == "encoder" and not has_head:
        raise ModelError(
            f"{config.model_type} is an encoder: every token sees the ones behind it, so a loss on the next token "
            "would be read off the input",
            where="model.path",
            remedy="task: {name: classify, by: head}" if task == "classify" else f"a decoder or T5 for {task}",
        )
    if kind == "encoder_decoder" and has_head:
        raise ModelError(
            f"{config.model_type} is an encoder-decoder, which has no place for a classification head here",
            where="model.path",
            remedy="task: instruct with the label as the answer, {name: classify, by: likelihood}, or a decoder",
        )


@torch.no_grad()
def prove_causal(base: Base) -> None:
    """A decoder's states must not change with a token behind them: by two forwards, whatever its name says."""
    if base.kind != "decoder" or base.head:
        return
    length = min(PROOF_TOKENS, base.anatomy.window)
    ids = torch.arange(length, device=next(base.model.parameters()).device)[None]
    table: Any = base.model.get_input_embeddings()
    ids = (ids + 4) % int(table.weight.shape[0])
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    one, two = (base.anatomy.backbone(input_ids=each).last_hidden_state[0, :-1].float() for each in (ids, other))
    exact = one.dtype == next(base.model.parameters()).dtype and not getattr(base.model, "is_quantized", False)
    moved = float((one - two).abs().max() / one.abs().max().clamp(min=1e-9))
    if moved > (1e-4 if exact else 5e-2):  # rounding; a token that is seen moves states by more
        raise ModelError(
            f"{type(base.model).__name__} lets tokens see the ones behind them (states move by {moved:.2g} of their "
            "size): a loss on the next token would be read off the input",
            where="model.path",
            remedy="a decoder, or task: {name: classify, by: head}",
        )
