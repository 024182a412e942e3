"""A prefix that depends on the input: base prefix + gate · up(tanh(down(mean embedding of the prompt))).

Only tokens before the answer are pooled, so training and generation see the same. Starts as the plain prefix.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.methods import METHODS
from luthier.methods.prefix import Prefix

if TYPE_CHECKING:
    from luthier.methods.modules.virtual_tokens import VirtualTokens
    from luthier.models.base import Base


@METHODS.register("dynamic_prefix")
class DynamicPrefix:
    """A prefix that depends on the input."""

    name: ClassVar[str]
    supports_activation_checkpointing: ClassVar[bool] = False
    """transformers drops the cache, and with it the prefix, when it recomputes a layer."""
    default_lr = 3e-3
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "between the bare prefix (1e-2) and a network (1e-3)"

    class Params(Prefix.Params):
        """The prefix and the network on the input."""

        hidden: int = Field(64, gt=0)
        """Width of the network that reads the pooled prompt."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def attach(self, base: Base, seed: int) -> VirtualTokens:
        """Build the base prefix and the network."""
        import torch

        from luthier.core.errors import ModelError
        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.virtual_tokens import refuse_unfit

        if self.params.tied or self.params.mlp:
            raise ModelError("a dynamic prefix has the free form", where="method", remedy="drop tied and mlp")
        refuse_unfit(base, self.params.length, prefix=True)
        seed_everything(seed)
        start = Prefix(self.params).start(base, torch.Generator().manual_seed(seed))
        return self._on(base, start, self.params.hidden)

    @classmethod
    def _on(cls, base: Base, start: Any, hidden: int, trainable: bool = True) -> VirtualTokens:
        from luthier.methods.modules.sources import Conditioned
        from luthier.methods.modules.virtual_tokens import VirtualTokens

        source = Conditioned(start, base.model.get_input_embeddings(), hidden)
        facts = {"peft_type": "LUTHIER_DYNAMIC_PREFIX", "length": len(start), "hidden": hidden}
        made = VirtualTokens(base, source, "prefix", None, trainable)
        made.facts = facts
        return made

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> VirtualTokens:
        """Read the folder."""
        import torch

        from luthier.methods.modules.adaptation import read_weights
        from luthier.methods.modules.virtual_tokens import prefix_width

        config, tensors = read_weights(folder, base)
        start = torch.zeros(int(config["length"]), prefix_width(base))
        attached = cls._on(base, start, int(config["hidden"]), trainable)
        attached.read_own(tensors, folder)
        return attached

    def formula(self, base: Base) -> int:
        """2·L·P·d_kv + P gates + d·m + m + m·2·L·d_kv + 2·L·d_kv, and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        anatomy, params = base.anatomy, self.params
        width = 2 * len(anatomy.cached_attentions) * anatomy.num_kv_heads * anatomy.head_dim
        net = anatomy.hidden_size * params.hidden + params.hidden + params.hidden * width + width
        return params.length * (width + 1) + net + parameter_count(base, ())
