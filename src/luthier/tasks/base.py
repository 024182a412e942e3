"""What a task is: a loss over a batch, a head or not, and the names of what is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from luthier.core.settings import Settings

if TYPE_CHECKING:
    from luthier.core.types import Spoken
    from luthier.engine.batch import Batch
    from luthier.models.base import Base
    from luthier.models.forward import Virtual
    from luthier.train.loss import LossOutput


class Task(Protocol):
    """A member of the family."""

    name: ClassVar[str]
    Params: ClassVar[type[Settings]]
    params: Any
    has_head: bool
    """Whether rows carry labels that a trained head predicts (then a unit of loss is a row, not a token)."""
    template: ClassVar[str]
    """The template that `auto` means."""
    spoken: Spoken | None
    """How labels become answers where label texts are scored; None for all else."""
    generates: ClassVar[bool]
    """Whether answers are generated for samples and text metrics."""

    # Optional: `unused(problem) -> dict[str, str]`, settings of `train:` that the loss has no place for, and why.

    def loss(self, base: Base, batch: Batch, virtual: Virtual | None, layout: str, **options: Any) -> LossOutput:
        """Summed loss over the batch's supervised units, with the per-row parts."""
