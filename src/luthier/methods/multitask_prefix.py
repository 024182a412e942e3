"""A library of prefixes over one base: every row of a batch takes the prefix of its task.

Rows of all tasks train and are served in the same batch; a row's answer equals that of its prefix alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from luthier.methods import METHODS
from luthier.methods.prefix import PEFT_TYPE, Prefix

if TYPE_CHECKING:
    from luthier.methods.modules.virtual_tokens import VirtualTokens
    from luthier.models.base import Base


@METHODS.register("multitask_prefix")
class MultitaskPrefix:
    """One prefix for each task, over one base."""

    name: ClassVar[str]
    supports_activation_checkpointing: ClassVar[bool] = False
    """transformers drops the cache, and with it the prefix, when it recomputes a layer."""
    default_lr = 1e-2
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "the same as a single prefix: tasks do not share weights"

    class Params(Prefix.Params):
        """The prefixes."""

        tasks: tuple[str, ...] = Field(("a", "b"), min_length=1)
        """Names; the order gives the task index of the rows."""

        @field_validator("tasks")
        @classmethod
        def _different(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
            if len(set(tasks)) != len(tasks) or not all(name and name.replace("_", "a").isalnum() for name in tasks):
                raise ValueError("task names must be different and made of letters, digits and _")
            return tasks

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def lr_for(self, base: Base) -> float:
        """That of a single prefix on this base."""
        return Prefix.encoder_lr if base.kind == "encoder" else self.default_lr

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that rows may belong to, in the order of the tables."""
        return self.params.tasks

    def attach(self, base: Base, seed: int) -> VirtualTokens:
        """Build one table a task, each with its own random start."""
        import torch

        from luthier.core.errors import ModelError
        from luthier.core.seeding import derive, seed_everything
        from luthier.methods.modules.virtual_tokens import refuse_unfit

        if self.params.tied or self.params.mlp:
            raise ModelError("multi-task prefixes have the free form", where="method", remedy="drop tied and mlp")
        refuse_unfit(base, self.params.length, prefix=True)
        seed_everything(seed)
        plain = Prefix(self.params)
        starts = [plain.start(base, torch.Generator().manual_seed(derive(seed, task))) for task in self.params.tasks]
        return self._on(base, torch.stack(starts), self.params.tasks)

    @classmethod
    def _on(cls, base: Base, values: Any, tasks: tuple[str, ...], trainable: bool = True) -> VirtualTokens:
        from luthier.methods.modules.sources import Library
        from luthier.methods.modules.virtual_tokens import VirtualTokens

        made = VirtualTokens(base, Library(values), "prefix", None, trainable)
        made.tasks = tasks
        made.facts = {"peft_type": "LUTHIER_MULTITASK_PREFIX", "tasks": list(tasks), "length": values.shape[1]}
        return made

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> VirtualTokens:
        """Read the folder."""
        import torch

        from luthier.methods.modules.adaptation import read_weights
        from luthier.methods.modules.virtual_tokens import prefix_width

        config, tensors = read_weights(folder, base)
        tasks = tuple(str(task) for task in config["tasks"])
        attached = cls._on(base, torch.zeros(len(tasks), int(config["length"]), prefix_width(base)), tasks, trainable)
        attached.read_own(tensors, folder)
        return attached

    @staticmethod
    def single(attached: VirtualTokens, task: str, folder: Path) -> None:
        """Write the prefix of one task as a plain prefix in PEFT's format."""
        from luthier.methods.modules.sources import Table
        from luthier.methods.modules.virtual_tokens import VirtualTokens

        index = attached.facts["tasks"].index(task)
        one = Table(attached.own["tables"][index])
        width = attached.base.anatomy.num_kv_heads * attached.base.anatomy.head_dim
        facts: dict[str, Any] = {"prefix_projection": False, "encoder_hidden_size": width}
        kept = {weight: weight.requires_grad for weight in attached.parameters().values()}
        VirtualTokens(attached.base, one, "prefix", PEFT_TYPE, **facts).save(folder)
        for weight, trained in kept.items():
            weight.requires_grad_(trained)

    def formula(self, base: Base) -> int:
        """N·2·L·P·d_kv, and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        anatomy, params = base.anatomy, self.params
        width = 2 * len(anatomy.cached_attentions) * anatomy.num_kv_heads * anatomy.head_dim
        return len(params.tasks) * params.length * width + parameter_count(base, ())
