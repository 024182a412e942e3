"""Full fine-tuning, with parts frozen by pattern, by layer, embeddings or norms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from luthier.core.settings import Settings
from luthier.methods import METHODS, rates

if TYPE_CHECKING:
    from luthier.methods.modules.direct import Direct
    from luthier.models.base import Base


@METHODS.register("full")
class Full:
    """All weights of the base, or all that are not frozen."""

    name: ClassVar[str]
    default_lr = 2e-5
    default_schedule: ClassVar[dict[str, Any]] = {"name": "cosine", "warmup": 0.1}
    lr_reason = "every weight moves: small steps, smaller the wider the model (2e-5 at width 2048)"

    class Params(Settings):
        """What stays frozen."""

        freeze: tuple[str, ...] = ()
        """Patterns of weights that stay frozen: a glob over the whole name, or a part of the name."""
        train: tuple[str, ...] = ()
        """Patterns of the only weights that are trained (then minus `freeze`)."""
        layers: str | None = None
        """Train only these layers (and what is outside all layers): 4-7, -2 (the last two), 3."""
        embeddings: bool = True
        """Train the embeddings; false freezes them, and a head that is tied to them."""
        norms: bool = True
        """Train the norms."""

        @model_validator(mode="after")
        def _range(self) -> Full.Params:
            if self.layers is not None:
                from luthier.methods.layers import parse

                parse(self.layers, 1 << 20)
            return self

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    @classmethod
    def lr_for(cls, base: Base) -> float:
        """The default rate for this model's width."""
        return rates.for_width(cls.default_lr, base.anatomy.hidden_size, power=1.0, high=1e-3)

    def attach(self, base: Base, seed: int) -> Direct:
        """Unfreeze the chosen weights, in float32."""
        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.direct import Direct

        seed_everything(seed)
        return Direct(base, tuple(self._names(base)), self.name)

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> Direct:
        """Read the trained tensors."""
        from luthier.methods.modules.direct import Direct

        return Direct.read(folder, base, trainable, cls.name)

    def _names(self, base: Base) -> list[str]:
        from luthier.methods import selection
        from luthier.methods.layers import parse
        from luthier.methods.targets import layer_of

        params = self.params
        every = [name for name, _ in base.model.named_parameters()]
        chosen = set(selection.matching(base, params.train, "method.train")) if params.train else set(every)
        chosen -= set(selection.matching(base, params.freeze, "method.freeze"))
        if params.layers is not None:
            kept = parse(params.layers, len(base.anatomy.layers))
            chosen = {name for name in chosen if layer_of(base, name) in (-1, *kept)}
        for wanted, modules in ((params.embeddings, selection.embeddings), (params.norms, selection.norms)):
            if not wanted:
                frozen = tuple(name + "." for name in modules(base))
                chosen = {name for name in chosen if not name.startswith(frozen)}
        return selection.refuse_empty(base, [name for name in every if name in chosen])

    def formula(self, base: Base) -> int:
        """Numbers in the chosen weights (tied ones once) and in the task head."""
        from luthier.methods.modules.tuned import parameter_count

        return parameter_count(base, tuple(self._names(base)))
