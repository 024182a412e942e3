"""(IA)³: one trained factor for each key, value and inner feed-forward channel. Liu et al. 2022. PEFT's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.core.settings import Settings
from luthier.methods import METHODS, targets

if TYPE_CHECKING:
    from luthier.methods.modules.tuned import Tuned
    from luthier.models.base import Base


@METHODS.register("ia3")
class IA3:
    """One trained factor a channel."""

    name: ClassVar[str]
    default_lr = 5e-3
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "very few numbers around 1: ten times LoRA's rate (3e-3 in the paper, 5e-3 measured here)"

    class Params(Settings):
        """Where the factors stand."""

        targets: str | tuple[str, ...] = "auto"
        """auto: keys, values (or the fused projection) and the last feed-forward layer | names, roles, globs."""
        feedforward: tuple[str, ...] = ("down",)
        """Which of the targets scale their input instead of their output."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def _places(self, base: Base) -> tuple[list[str], list[str]]:
        """(all targets, those that scale their input)."""
        roles = base.anatomy.linear_names
        wanted = self.params.targets
        if wanted == "auto":
            wanted = tuple(role for role in ("k", "v", "qkv", "down") if role in roles)
        names = targets.resolve(base, wanted)
        inner = [r for r in self.params.feedforward if r in roles or r != "down"]
        return names, [name for name in targets.resolve(base, inner) if name in names] if inner else []

    def attach(self, base: Base, seed: int) -> Tuned:
        """Inject factors of one: identity at the first step."""
        from peft import IA3Config

        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.tuned import Tuned

        seed_everything(seed)
        names, inner = self._places(base)
        short = targets.short_names(base, names)
        inside = targets.short_names(base, inner)
        if not set(inside) <= set(short):
            short, inside = names, inner
        config = IA3Config(
            target_modules=short,
            feedforward_modules=inside,
            fan_in_fan_out=any(targets.is_transposed(base, name) for name in names),
        )
        return Tuned(base, config)

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> Tuned:
        """Read ours or PEFT's folder."""
        from luthier.methods.modules.tuned import Tuned, modules_to_save, read_peft

        config, raw, tensors = read_peft(folder, base)
        config.modules_to_save = None
        attached = Tuned(base, config, modules_to_save(base, raw), trainable)
        attached.load_tensors(tensors, str(folder))
        return attached

    def formula(self, base: Base) -> int:
        """Σ out over keys and values + Σ in over feed-forward layers, and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        names, inner = self._places(base)
        return sum(targets.shape_of(base, n)[0 if n in inner else 1] for n in names) + parameter_count(base, ())
