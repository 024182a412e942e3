"""Answers to instructions: loss on the answer and its stop token only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.settings import Settings
from luthier.tasks import TASKS

if TYPE_CHECKING:
    from luthier.engine.batch import Batch
    from luthier.models.base import Base
    from luthier.models.forward import Virtual
    from luthier.train.loss import LossOutput


@TASKS.register("instruct")
class Instruct:
    """Answers to instructions: loss on the answer and its stop token only."""

    has_head = False
    spoken = None
    template = "auto"
    generates = True

    class Params(Settings):
        """No settings of its own."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def loss(self, base: Base, batch: Batch, virtual: Virtual | None, layout: str, **options: Any) -> LossOutput:
        """Token-weighted cross entropy, summed."""
        from luthier.tasks.token_loss import token_loss

        return token_loss(base, batch, virtual, layout, **options)
