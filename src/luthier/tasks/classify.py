"""Labels of texts, one loss a row: from a trained head on the model, or each label's text as the model's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from luthier.core.settings import Settings
from luthier.core.types import Spoken
from luthier.tasks import TASKS

if TYPE_CHECKING:
    from luthier.engine.batch import Batch
    from luthier.models.base import Base
    from luthier.models.forward import Virtual
    from luthier.train.loss import LossOutput


@TASKS.register("classify")
class Classify:
    """Cross entropy over classes, binary cross entropy over several labels, squared error for values, or the
    likelihood of the label's text."""

    template = "plain"
    generates = False

    class Params(Settings):
        """What the labels are."""

        problem: Literal["auto", "single", "multi", "regression"] = "auto"
        """auto: numbers with many values are a regression, lists are multi-label, all else one class a row."""
        by: Literal["head", "likelihood"] = "head"
        """head: a trained head. likelihood: the label whose text is the likeliest answer; the base is zero-shot."""
        instruction: str | None = None
        """likelihood: what is asked before every text; null: the text alone is the prompt."""
        normalize: Literal["none", "tokens"] = "none"
        """likelihood: a label's score is its summed log-likelihood, or that divided by its tokens."""

        @model_validator(mode="after")
        def _one_way(self) -> Classify.Params:
            if self.by == "head" and (self.instruction is not None or self.normalize != "none"):
                raise ValueError("instruction and normalize belong to by: likelihood")
            if self.by == "likelihood" and self.problem not in ("auto", "single"):
                raise ValueError(f"by: likelihood gives one class a row; problem: {self.problem} needs by: head")
            return self

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    @property
    def has_head(self) -> bool:
        """Whether a head is trained; without one, label texts are scored."""
        return self.params.by == "head"

    @property
    def spoken(self) -> Spoken | None:
        """How labels become answers; None for a head."""
        return None if self.has_head else Spoken(self.params.instruction)

    def unused(self, problem: str) -> dict[str, str]:
        """Settings of `train:` that this loss has no place for, and why. `problem` may be auto: not known yet."""
        if not self.has_head:
            return {}
        found = {"z_loss": "a row head has no vocabulary whose size z_loss could hold"}
        if problem in ("multi", "regression"):
            found["label_smoothing"] = f"the loss of a {problem} problem has no classes to smooth over"
        return found

    def loss(
        self,
        base: Base,
        batch: Batch,
        virtual: Virtual | None,
        layout: str,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> LossOutput:
        """The sum over rows; `batch.labels` [S] int64 classes, [S] float values or [S, classes] 0/1.

        By likelihood: − log p(label and its end | prompt).
        """
        import torch
        from torch.nn import functional

        from luthier.models import forward
        from luthier.train.loss import LossOutput

        if not self.has_head:
            from luthier.tasks.token_loss import token_loss

            found = token_loss(base, batch, virtual, layout, label_smoothing=label_smoothing, **options)
            ones = found.row_counts.new_ones(len(found.row_counts))
            return LossOutput(found.total, len(ones), found.row_losses, ones)
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
