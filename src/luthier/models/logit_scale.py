"""Are luthier's logits the model's own? Some architectures multiply what the head gives, some divide, some cap it.

One short row goes through the model's own forward and through `forward.logits`. The config's factor is kept where
both agree; else the factor is measured (cap · artanh(logits / cap) = factor · head), and a model whose logits are
not its head times one factor is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.core.types import IGNORE, Row
from luthier.engine.batch import from_rows

if TYPE_CHECKING:
    from luthier.models.anatomy import Anatomy
    from luthier.models.base import Base

TOKENS = 8
TOLERANCE = 1e-4
"""Of the largest logit, in float32; shorter types round more."""
TOLERANCE_SHORT = 3e-2


@torch.no_grad()
def checked(base: Base) -> Anatomy:
    """The base's anatomy with the factor that makes luthier's logits the model's own. Draws no random numbers.

    ModelError for a model whose logits are made otherwise. Encoders and row heads have no such logits.
    """
    found = base.anatomy
    if base.kind == "encoder" or base.model.get_output_embeddings() is None:
        return found
    try:
        raw, own = _both(base)
    except (TypeError, AttributeError, NotImplementedError) as error:
        what = f"{type(base.model).__name__} does not run on token ids alone: {error}".split("\n")[0][:200]
        raise ModelError(what, where="model.path", remedy="use another model") from None
    if raw.shape == own.shape and not bool(torch.isfinite(own).all() and raw.abs().max() > 0):
        return found  # weights that are not finite, or a head of zeros, say nothing about a factor
    short = next(base.model.parameters()).dtype != torch.float32
    limit = TOLERANCE_SHORT if short else TOLERANCE
    cap = found.logit_softcap
    if _apart(raw, own, found.logit_scale, cap) <= limit:
        return found
    scale = _measured(raw, own, cap) if raw.shape == own.shape else found.logit_scale
    scale = next((one for one in _numbers(base.model.config) if abs(one / scale - 1) < limit), scale)
    apart = _apart(raw, own, scale, cap)
    if not apart <= limit:
        raise ModelError(
            f"{type(base.model).__name__} makes its logits otherwise than head × factor: {apart:.2g} of them is off",
            where="model.path",
            remedy="use another model, or task: classify",
        )
    return replace(found, logit_scale=scale)


def _both(base: Base) -> tuple[Tensor, Tensor]:
    """([N, vocabulary] of the head alone, [N, vocabulary] of the model itself), float64."""
    from luthier.models import forward

    model: Any = base.model
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    count = min(TOKENS, base.anatomy.window)
    ids = (torch.arange(count) * 7 + 3) % vocabulary
    device = next(model.parameters()).device
    split = count // 2 if base.kind == "encoder_decoder" else 1
    labels = ids.clone()
    labels[:split] = IGNORE
    batch = from_rows([Row("logits", ids.numpy(), labels.numpy())]).to(device)
    states = forward.hidden(base, batch)
    if base.kind == "encoder_decoder":
        from luthier.models import seq2seq

        begin = torch.tensor([seq2seq.start_token(base)])
        answer = torch.cat([begin, ids[split:-1]])[None].to(device)
        own = model(input_ids=ids[None, :split].to(device), decoder_input_ids=answer).logits[0]
        states = states[split - 1 : -1]
    else:
        own = model(input_ids=ids[None].to(device)).logits[0]
    plain = replace(base, anatomy=replace(base.anatomy, logit_scale=1.0, logit_softcap=None))
    return forward.logits(plain, states).double(), own.double()


def _apart(raw: Tensor, own: Tensor, scale: float, cap: float | None) -> float:
    """Largest difference as a share of the largest logit."""
    if raw.shape != own.shape:
        return float("inf")
    made = raw * scale
    made = torch.tanh(made / cap) * cap if cap else made
    return float((made - own).abs().max() / own.abs().max().clamp(min=1e-30))


def _measured(raw: Tensor, own: Tensor, cap: float | None) -> float:
    """The factor by least squares, over logits that the cap leaves readable."""
    if cap:
        seen = own.abs() < 0.95 * cap
        raw, own = raw[seen], torch.atanh(own[seen] / cap) * cap
    return float((raw * own).sum() / raw.square().sum().clamp(min=1e-30)) or 1.0


def _numbers(config: Any) -> Iterator[float]:
    """What a config's number can stand for, so that a measured factor becomes the exact one."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    yield 1.0
    for value in vars(text).values():
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            yield from (float(value), 1 / value, value**-0.5)
