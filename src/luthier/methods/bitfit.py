"""Only the biases are trained. Ben-Zaken et al. 2022."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.core.settings import Settings
from luthier.methods import METHODS

if TYPE_CHECKING:
    from luthier.methods.modules.direct import Direct
    from luthier.models.base import Base


@METHODS.register("bitfit")
class Bitfit:
    """Only the biases."""

    name: ClassVar[str]
    default_lr = 1e-3
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "biases are few and small: 1e-3 (the paper searches 1e-4 to 1e-2)"

    class Params(Settings):
        """No settings."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def _names(self, base: Base) -> list[str]:
        from luthier.core.errors import ModelError
        from luthier.methods.selection import biases, candidates

        found = biases(base)
        if not any(not name.startswith(tuple(head + "." for head in base.head)) for name in found):
            raise ModelError(
                f"{base.path.name} has no biases",
                where="method",
                remedy=f"lora or last_layers; its weights: {', '.join(candidates(base)[:12])}",
            )
        return found

    def attach(self, base: Base, seed: int) -> Direct:
        """Unfreeze the biases."""
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
        """Numbers in the biases and in the task head."""
        from luthier.methods.modules.tuned import parameter_count

        return parameter_count(base, tuple(self._names(base)))
