"""Bottleneck adapters: down, activation, up, beside or behind a sub-layer. No model code: hooks through anatomy.

    houlsby   h ← h + s · up(σ(down(h)))  after attention and after feed-forward   (Houlsby et al. 2019)
    pfeiffer  the same after feed-forward only                                      (Pfeiffer et al. 2021)
    parallel  h ← h + s · up(σ(down(x)))  x the feed-forward's input                (He et al. 2022)

`up` starts at zero: identity at the first step. The place is the sub-layer's output before dropout, residual
and norm.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.settings import Settings
from luthier.methods import METHODS, rates

if TYPE_CHECKING:
    from luthier.methods.modules.hooked import Hooked
    from luthier.models.anatomy import Site
    from luthier.models.base import Base


@METHODS.register("bottleneck")
class Bottleneck:
    """Small networks after or beside the sub-layers."""

    name: ClassVar[str]
    default_lr = 1e-3
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = (
        "fresh weights from a zero start: as LoRA, a little higher; 1e-3 in the papers' search ranges; on an encoder "
        "1.75 times that"
    )

    class Params(Settings):
        """The adapters."""

        style: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
        reduction: int = Field(16, gt=0)
        """Model width over bottleneck width."""
        size: int | None = Field(None, gt=0)
        """Bottleneck width, instead of `reduction`."""
        activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
        scale: float = Field(1.0, gt=0)
        """Factor s on the branch (4 in MAM)."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """On the branch's input."""
        layers: tuple[int, ...] | None = None
        """Only these layers; negative numbers count from the end."""
        gate: bool = False
        """Multiply each token's branch by sigmoid(w · x + b) (UniPELT)."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    @classmethod
    def lr_for(cls, base: Base) -> float:
        """The default rate for this model's width; more on an encoder."""
        encoder = base.kind == "encoder"
        rate = cls.default_lr * (rates.ENCODERS if encoder else 1)
        return rates.for_width(rate, base.anatomy.hidden_size, low=2e-4, high=5e-3 if encoder else 3e-3)

    def sites(self, base: Base) -> list[Site]:
        """Where the branches go."""
        from luthier.core.errors import ModelError

        kinds = ("attention", "ffn") if self.params.style == "houlsby" else ("ffn",)
        count = len(base.anatomy.layers)
        chosen = None if self.params.layers is None else {i % count for i in self.params.layers if -count <= i < count}
        if chosen is not None and len(chosen) < len(set(self.params.layers or ())):
            raise ModelError(f"the model has layers 0 to {count - 1}", where="method.layers")
        found = [s for s in base.anatomy.sites if s.kind in kinds and (chosen is None or s.layer in chosen)]
        if not found:
            raise ModelError("no sub-layer was found to adapt", where="method", remedy="lora or full")
        return found

    def width(self, base: Base) -> int:
        """Bottleneck width m."""
        return self.params.size or max(1, base.anatomy.hidden_size // self.params.reduction)

    def attach(self, base: Base, seed: int) -> Hooked:
        """Hang the branches on; identity at the first step."""
        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.hooked import Hooked

        seed_everything(seed)
        return Hooked(base, self.sites(base), self.width(base), self.params)

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> Hooked:
        """Read the folder."""
        from pydantic import ValidationError

        from luthier.core.errors import ModelError
        from luthier.methods.modules.adaptation import read_weights
        from luthier.methods.modules.hooked import Hooked

        config, tensors = read_weights(folder, base)
        try:
            member = cls(cls.Params(**config["settings"]))
        except (ValidationError, KeyError, TypeError) as error:
            raise ModelError(f"adapter_config.json is not understood: {error}", where=str(folder)) from None
        attached = Hooked(base, member.sites(base), member.width(base), member.params, trainable)
        attached.load_tensors(tensors, str(folder))
        return attached

    def formula(self, base: Base) -> int:
        """Per site 2·d·m + m + d (+ d + 1 for a gate), and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        d, m = base.anatomy.hidden_size, self.width(base)
        each = 2 * d * m + m + d + (d + 1 if self.params.gate else 0)
        return len(self.sites(base)) * each + parameter_count(base, ())
