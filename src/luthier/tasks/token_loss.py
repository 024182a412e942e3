"""The loss of every task that trains tokens: summed negative log-likelihood over supervised tokens."""

from __future__ import annotations

from typing import Any

import torch

from luthier.core.types import IGNORE
from luthier.engine.batch import Batch
from luthier.models import forward
from luthier.models.base import Base
from luthier.train.loss import LossOutput


def token_loss(
    base: Base, batch: Batch, virtual: forward.Virtual | None, layout: str, checkpointing: bool = False, **options: Any
) -> LossOutput:
    """Sum over tokens with a target, never a mean of means: the caller divides by the tokens of the whole step."""
    hidden = forward.hidden(base, batch, virtual, layout=layout, checkpointing=checkpointing)
    losses = forward.token_nll(base, hidden, batch.targets, **options)
    rows = batch.segment_of_token().to(losses.device)
    counted = (batch.targets != IGNORE).to(losses.dtype)
    size = len(batch.row_ids)
    row_losses = torch.zeros(size, dtype=torch.float32, device=losses.device).index_add_(
        0, rows, losses.detach().float()
    )
    row_counts = torch.zeros(size, dtype=torch.float32, device=losses.device).index_add_(0, rows, counted.float())
    return LossOutput(losses.sum(), batch.supervised, row_losses, row_counts)
