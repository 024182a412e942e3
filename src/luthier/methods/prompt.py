"""Prompt tuning: trained embeddings before the text. Lester et al. 2021. PEFT's format.

PEFT drops position ids, so that left-padded batches and decoder heads go wrong; here virtual tokens stand
directly before each row's own tokens, with explicit positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.settings import Settings
from luthier.methods import METHODS

if TYPE_CHECKING:
    from luthier.methods.modules.virtual_tokens import VirtualTokens
    from luthier.models.base import Base

PEFT_TYPE = "PROMPT_TUNING"


@METHODS.register("prompt")
class Prompt:
    """Trained embeddings before the text."""

    name: ClassVar[str]
    default_lr = 1e-2
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "a slow starter: P·d numbers far from the loss, 1e-2 with AdamW (0.3 in the paper is Adafactor's)"

    class Params(Settings):
        """The prompt."""

        length: int = Field(20, gt=0, le=4096)
        """Virtual tokens; they come off the window."""
        init: Literal["text", "random"] = "text"
        """text: embeddings of init_text, or of ordinary tokens drawn from the vocabulary."""
        init_text: str | None = None
        """What the prompt says at the start."""

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def attach(self, base: Base, seed: int) -> VirtualTokens:
        """Build the prompt."""
        import torch

        from luthier.core.seeding import seed_everything
        from luthier.methods.modules import sources, starts
        from luthier.methods.modules.virtual_tokens import VirtualTokens, refuse_unfit

        params = self.params
        refuse_unfit(base, params.length, prefix=False)
        seed_everything(seed)
        generator = torch.Generator().manual_seed(seed)
        if params.init == "random":
            values = starts.random(base, (params.length, base.anatomy.hidden_size), generator)
        else:
            values = starts.embeddings(base, starts.token_ids(base, params.init_text, params.length, generator))
        return VirtualTokens(base, sources.Table(values), "prompt", PEFT_TYPE, prompt_tuning_init="RANDOM")

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> VirtualTokens:
        """Read ours or PEFT's folder."""
        from luthier.methods.modules.virtual_tokens import VirtualTokens

        return VirtualTokens.read(folder, base, "prompt", PEFT_TYPE, trainable)

    def formula(self, base: Base) -> int:
        """P·d, and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        return self.params.length * base.anatomy.hidden_size + parameter_count(base, ())
