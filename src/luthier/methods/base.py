"""What a method is, and what it leaves behind after attaching.

    Method(Params).attach(base, seed) ─► Attached ─► trainable weights, `virtual(batch)`, off, save, load, merge

Method modules import torch only inside functions: `list`, `check --quick` and the recipe schema read `Params`
without it. The torch code of a method lives in `methods/modules/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.settings import Settings
    from luthier.engine.batch import Batch
    from luthier.models.base import Base
    from luthier.models.forward import Virtual


class Attached(Protocol):
    """A method that sits on a base. Never compared by name: callers ask these traits."""

    can_merge: bool
    """Whether `merge()` can fold the method into the base weights."""
    virtual_tokens: int
    """Positions that the method takes from the window (prefix and prompt kinds)."""
    supports_activation_checkpointing: bool
    peft_type: str | None
    """PEFT's name of the saved format, None for formats of our own (then `luthier.json` describes it)."""

    tasks: tuple[str, ...]
    """Names of the tasks that rows choose from, in the order of `Row.task`; empty: rows have no tasks."""

    lr_factors: Mapping[str, float]
    """Weight name → factor on the learning rate; absent names have factor 1 (LoRA+, parts of a stack)."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Every trained weight by a stable name, task head included."""

    def state(self) -> dict[str, Tensor]:
        """Everything that exact resume needs, reparameterisation networks included (CPU clones)."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`; a missing, extra or misshapen tensor is an error."""

    def virtual(self, batch: Batch) -> Virtual | None:
        """Virtual keys/values or embeddings for this batch, None for methods that only change weights."""

    def off(self) -> AbstractContextManager[None]:
        """Inside: the untouched base (also the base's own head where one exists)."""

    def save(self, folder: Path) -> None:
        """Write PEFT's folder format where PEFT has the method, else our own."""

    def merge(self) -> None:
        """Fold into the base in float32, in place, once. Raises CannotMerge with the reason."""

    def branches(self) -> Iterator[tuple[str, Any]]:
        """(layer name, description) of every place where the method acts, for the health probes."""

    # Optional: `wants_inputs`; where it is true, `start_from_inputs(run)` is called once before training, and `run`
    # sends some training rows through the model.


class Method(Protocol):
    """A member of the family."""

    name: ClassVar[str]
    Params: ClassVar[type[Settings]]
    default_lr: ClassVar[float]
    default_schedule: ClassVar[Mapping[str, Any]]
    lr_reason: ClassVar[str]
    """Why this rate; printed in the docs."""

    def __init__(self, params: Any): ...

    def attach(self, base: Base, seed: int) -> Attached:
        """Put the method on the base: seed first, then build; freezes everything else."""

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> Attached:
        """Read what `save` wrote (or what another tool wrote in PEFT's format), through the gate."""

    # Optional: `supports_activation_checkpointing: ClassVar[bool]` (absent: True), known before anything loads;
    # `lr_for(base) -> float`, the default rate for this model (absent: `default_lr`); `tasks`, names that every row
    # must have one of (absent: rows have no tasks).

    def formula(self, base: Base) -> int:
        """Trainable parameters by formula, to be compared with the count."""
