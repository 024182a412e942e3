"""Only the last layers are trained, with the final norm: cheap, and a strong baseline for classification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.settings import Settings
from luthier.methods import METHODS, rates

if TYPE_CHECKING:
    from luthier.methods.modules.direct import Direct
    from luthier.models.base import Base


@METHODS.register("last_layers")
class LastLayers:
    """Only the last layers."""

    name: ClassVar[str]
    default_lr = 5e-5
    default_schedule: ClassVar[dict[str, Any]] = {"name": "cosine", "warmup": 0.1}
    lr_reason = "whole weights, but few of them and near the loss: a little above full tuning"

    class Params(Settings):
        """How many."""

        count: int = Field(2, gt=0)
        """Layers from the end."""
        final_norm: bool = True
        """Train the norm after the last layer too."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    @classmethod
    def lr_for(cls, base: Base) -> float:
        """The default rate for this model's width."""
        return rates.for_width(cls.default_lr, base.anatomy.hidden_size, power=1.0, high=1e-3)

    def _names(self, base: Base) -> list[str]:
        from luthier.core.errors import ModelError

        layers = [name for name, _ in base.anatomy.layers]
        if self.params.count > len(layers):
            raise ModelError(f"the model has only {len(layers)} layers", where="method.count", remedy="method: full")
        norm = base.anatomy.final_norm
        return layers[-self.params.count :] + ([norm[0]] if norm and self.params.final_norm else [])

    def attach(self, base: Base, seed: int) -> Direct:
        """Unfreeze the last layers."""
        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.direct import Direct

        seed_everything(seed)
        return Direct(base, tuple(self._names(base)), self.name)

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> Direct:
        """Read the trained tensors."""
        from luthier.methods.modules.direct import Direct

        return Direct.read(folder, base, trainable, cls.name)

    def formula(self, base: Base) -> int:
        """Numbers in the last layers, the final norm and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        return parameter_count(base, tuple(self._names(base)))
