"""Labels of texts: a trained head on the model, one loss a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from luthier.core.settings import Settings
from luthier.tasks import TASKS

if TYPE_CHECKING:
    from luthier.engine.batch import Batch
    from luthier.models.base import Base
    from luthier.models.forward import Virtual
    from luthier.train.loss import LossOutput


@TASKS.register("classify")
class Classify:
    """Cross entropy over classes, binary cross entropy over several labels, or squared error for values."""

    has_head = True
    template = "plain"
    generates = False

    class Params(Settings):
        """What the labels are."""

        problem: Literal["auto", "single", "multi", "regression"] = "auto"
        """auto: numbers with many values are a regression, lists are multi-label, all else one class a row."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def loss(
        self,
        base: Base,
        batch: Batch,
        virtual: Virtual | None,
        layout: str,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> LossOutput:
        """The sum over rows; `batch.labels` [S] int64 classes, [S] float values or [S, classes] 0/1."""
        import torch
        from torch.nn import functional

        from luthier.models import forward
        from luthier.train.loss import LossOutput

        assert batch.labels is not None, "classification rows carry labels"
        hidden = forward.hidden(base, batch, virtual, layout=layout, checkpointing=options.get("checkpointing", False))
        logits = forward.row_logits(base, batch, hidden, virtual, layout).float()
        labels = batch.labels
        if labels.dtype == torch.int64:
            losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        elif labels.dim() == 2:
            losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        else:
            losses = (logits.squeeze(-1) - labels).square()
        return LossOutput(losses.sum(), len(losses), losses.detach(), torch.ones_like(losses).detach())
