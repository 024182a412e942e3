"""What the loop knows between two steps; JSON-able, so that a checkpoint can hold it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """`step` optimizer steps are done; the next group is number `group` of `epoch`."""

    step: int = 0
    epoch: int = 0
    group: int = 0
    settled: bool = True
    """Whether the evaluation and the checkpoint that are due after `step` were made."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Validation records, oldest first, each with its step."""
    best_step: int = -1
    best_metric: float | None = None
    supervised_tokens: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    split: int = 1
    """How many parts a micro-batch is cut into since memory ran out (1: none)."""
    recent: list[float] = field(default_factory=list)
    """The last step losses, for telling a spike."""
    skipped: list[str] = field(default_factory=list)
    """Rows that are no longer trained on (`spikes: skip_row`)."""
    anchor: int = -1
    """Step of the last regular checkpoint: where a rollback goes."""
    finished: bool = False
    reason: str = ""

    @property
    def best(self) -> tuple[float | None, int]:
        """(metric, step) of the best evaluation."""
        return self.best_metric, self.best_step

    @property
    def mean_loss(self) -> float | None:
        """Token-weighted mean loss over the whole run, resumes included."""
        return self.loss_sum / self.supervised_tokens if self.supervised_tokens else None

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)
