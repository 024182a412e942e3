"""P-tuning: a prompt that a small network (MLP or LSTM) makes while training. Liu et al. 2021. PEFT's format.

The network is part of every checkpoint, so that a resumed run is the same run; what is saved as the adapter
is the prompt that it makes.
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

PEFT_TYPE = "P_TUNING"


@METHODS.register("p_tuning")
class PTuning:
    """A prompt made by an MLP or an LSTM."""

    name: ClassVar[str]
    default_lr = 1e-3
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "the network multiplies the steps: 1e-3 where the bare table takes 1e-2"

    class Params(Settings):
        """The encoder."""

        length: int = Field(20, gt=0, le=4096)
        """Virtual tokens; they come off the window."""
        encoder: Literal["mlp", "lstm"] = "mlp"
        hidden: int | None = Field(None, gt=0)
        """Of the encoder; null: the model's width."""
        lstm_layers: int = Field(2, gt=0, le=8)
        dropout: float = Field(0.0, ge=0, lt=1)
        """Between LSTM layers."""
        init: Literal["text", "random"] = "text"
        """text: the encoder's output is added to the embeddings of real tokens and starts at zero."""
        init_text: str | None = None

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def attach(self, base: Base, seed: int) -> VirtualTokens:
        """Build table and encoder."""
        import torch

        from luthier.core.seeding import seed_everything
        from luthier.methods.modules import sources, starts
        from luthier.methods.modules.virtual_tokens import VirtualTokens, refuse_unfit

        params, width = self.params, base.anatomy.hidden_size
        refuse_unfit(base, params.length, prefix=False)
        seed_everything(seed)
        generator = torch.Generator().manual_seed(seed)
        hidden = params.hidden or width
        net = self._net(width, hidden)
        offset = None
        if params.init == "text":
            offset = starts.embeddings(base, starts.token_ids(base, params.init_text, params.length, generator))
            last = net.head[-1] if params.encoder == "lstm" else net[-1]
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
        values = starts.random(base, (params.length, width), generator)
        return VirtualTokens(
            base,
            sources.Encoded(values, net, offset),
            "prompt",
            PEFT_TYPE,
            encoder_reparameterization_type=params.encoder.upper(),
            encoder_hidden_size=hidden,
            encoder_num_layers=params.lstm_layers,
            encoder_dropout=params.dropout,
        )

    def _net(self, width: int, hidden: int) -> Any:
        from torch import nn

        from luthier.methods.modules.sources import Recurrent

        if self.params.encoder == "lstm":
            return Recurrent(width, hidden, self.params.lstm_layers, self.params.dropout)
        middle = nn.Linear(hidden, hidden)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), middle, nn.ReLU(), nn.Linear(hidden, width))

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> VirtualTokens:
        """Read ours or PEFT's folder: the prompt, without the encoder that made it."""
        from luthier.methods.modules.virtual_tokens import VirtualTokens

        return VirtualTokens.read(folder, base, "prompt", PEFT_TYPE, trainable)

    def formula(self, base: Base) -> int:
        """P·d, the encoder, and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        params, d = self.params, base.anatomy.hidden_size
        h = params.hidden or d
        if params.encoder == "mlp":
            net = d * h + h + h * h + h + h * d + d
        else:
            first, later = 2 * 4 * h * (d + h + 2), 2 * 4 * h * (2 * h + h + 2)
            net = first + (params.lstm_layers - 1) * later + (2 * h) * (2 * h) + 2 * h + 2 * h * d + d
        return params.length * d + net + parameter_count(base, ())
