"""Does this model fit this task? Told from its config before any weight is loaded, and proved on a short row after."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from luthier.core.errors import ModelError
from luthier.core.types import Row
from luthier.models import anatomy
from luthier.models.base import Base
from luthier.models.settings import ModelSettings

PROOF_TOKENS = 8
"""Length of the rows that proofs send through a model."""


def refuse_task(settings: ModelSettings, task: str, has_head: bool) -> None:
    """ModelError where the architecture cannot do the task; reads config.json only."""
    from luthier.models.load import architecture, resolve

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
    ids = _short_row(base)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    one, two = (base.anatomy.backbone(input_ids=each).last_hidden_state[0, :-1].float() for each in (ids, other))
    moved = float((one - two).abs().max() / one.abs().max().clamp(min=1e-9))
    if moved > _rounding(base):  # a token that is seen moves states by more
        raise ModelError(
            f"{type(base.model).__name__} lets tokens see the ones behind them (states move by {moved:.2g} of their "
            "size): a loss on the next token would be read off the input",
            where="model.path",
            remedy="a decoder, or task: {name: classify, by: head}",
        )


@torch.no_grad()
def prove_head(base: Base) -> None:
    """The logits of a row, as training computes them, must be the model's own; ModelError says which are known."""
    from luthier.engine.batch import from_rows
    from luthier.models import forward, row_head

    ids, sizes = _short_row(base), [1e-9]
    linear = [m for name in base.head for m in base.model.get_submodule(name).modules() if isinstance(m, nn.Linear)]
    handles = [module.register_forward_hook(lambda m, a, out: sizes.append(_usual(m, a[0]))) for module in linear]
    try:
        wanted = base.model(input_ids=ids).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    row = Row("proof", ids[0].cpu().numpy().astype("int32"), ids[0].cpu().numpy().astype("int32"))
    found = forward.row_logits(base, from_rows([row]).to(ids.device))[0].float()
    off = float((found - wanted).abs().max()) / max(float(wanted.abs().max()), sizes[-1])
    if not off <= _rounding(base):
        raise ModelError(
            f"the head of {type(base.model).__name__} pools in a way that is not known here: a row's logits differ "
            f"from the model's own by {off:.2g} of their size",
            where="model.path",
            remedy=f"{row_head.KNOWN}, or a decoder",
        )


def _usual(linear: nn.Linear, given: torch.Tensor) -> float:
    """Size that a product of such a weight and such an input usually has; one logit may be near zero by chance."""
    if not linear.weight.is_floating_point():
        return 0.0
    rows, ends = linear.weight.float().norm(dim=1).max(), given.float().norm(dim=-1).max()
    return float(rows * ends) / linear.in_features**0.5


def _short_row(base: Base) -> torch.Tensor:
    """[1, PROOF_TOKENS] ordinary ids."""
    table: Any = base.model.get_input_embeddings()
    ids = torch.arange(4, 4 + min(PROOF_TOKENS, base.anatomy.window), device=next(base.model.parameters()).device)
    return ids[None] % int(table.weight.shape[0])


def _rounding(base: Base) -> float:
    """What a model's own dtype may move."""
    exact = next(base.model.parameters()).dtype == torch.float32 and not getattr(base.model, "is_quantized", False)
    return 1e-4 if exact else 5e-2
