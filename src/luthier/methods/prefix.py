"""Prefix tuning: trained keys and values before every layer's own, in PEFT's layout.

    Attn' = softmax(q [K_p; K]ᵀ) [V_p; V] = (1 − λ) Attn + λ Attn_prefix,   λ = the prefix's share of the mass

Li & Liang 2021: free K_p and V_p, 2·L·P·d_kv numbers. `tied` is the weaker form K_p = P W_K, V_p = P W_V with
L·P·d numbers. The prefix is not rotated; real tokens start at position P, as in PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.core.settings import Settings
from luthier.methods import METHODS

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from luthier.methods.modules.sources import Source
    from luthier.methods.modules.virtual_tokens import VirtualTokens
    from luthier.models.base import Base

PEFT_TYPE = "PREFIX_TUNING"


@METHODS.register("prefix")
class Prefix:
    """Trained keys and values before every layer's own."""

    name: ClassVar[str]
    supports_activation_checkpointing: ClassVar[bool] = False
    """transformers drops padded rows' cache, and with it the prefix, when it recomputes a layer; flat is exact."""
    default_lr = 1e-2
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = (
        "few numbers with small gradients: 1e-2 on the free table, 3e-2 on that of encoders, 1e-3 through an MLP; 5e-5 "
        "does not move a prefix"
    )
    encoder_lr: ClassVar[float] = 3e-2
    """An encoder is not used to tokens that begin at position P: its pooled state changes by 120 % before the first
    step (all-MiniLM, P = 16), and keys and values (spread 1.1 and 0.6) must travel their own length in a few hundred
    steps, each of which moves a number by at most the rate."""

    class Params(Settings):
        """The prefix."""

        length: int = Field(20, gt=0, le=4096)
        """Virtual positions P; they come off the window."""
        init: Literal["activations", "embeddings", "random"] = "activations"
        """activations: what the model computes on real tokens; embeddings: their embeddings through W_K, W_V."""
        init_text: str | None = None
        """Text of the starting tokens; null draws ordinary tokens from the vocabulary."""
        tied: bool = False
        """K = P W_K and V = P W_V through the frozen projections: half the numbers, less freedom."""
        mlp: int | None = Field(None, gt=0)
        """Hidden size of a network that makes the prefix while training (kept in checkpoints, folded when saved)."""

        @model_validator(mode="after")
        def _one_form(self) -> Prefix.Params:
            if self.tied and self.mlp:
                raise ValueError("tied and mlp are given; keep one")
            return self

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    def lr_for(self, base: Base) -> float:
        """The default rate for this form."""
        if self.params.mlp:
            return 1e-3
        return self.encoder_lr if base.kind == "encoder" and not self.params.tied else self.default_lr

    def attach(self, base: Base, seed: int) -> VirtualTokens:
        """Build the prefix; the base stays as it is."""
        import torch

        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.virtual_tokens import VirtualTokens, refuse_unfit

        refuse_unfit(base, self.params.length, prefix=True)
        seed_everything(seed)
        source = self._source(base, torch.Generator().manual_seed(seed))
        width = base.anatomy.num_kv_heads * base.anatomy.head_dim
        facts: dict[str, Any] = {"prefix_projection": False, "encoder_hidden_size": self.params.mlp or width}
        return VirtualTokens(base, source, "prefix", PEFT_TYPE, **facts)

    def _source(self, base: Base, generator: Generator) -> Source:
        import torch

        from luthier.methods.modules import sources, starts
        from luthier.methods.modules.virtual_tokens import prefix_width

        params, layers = self.params, len(base.anatomy.cached_attentions)
        if params.tied:
            project = starts.projections(base)
            if params.init == "random":
                return sources.Tied(
                    starts.random(base, (layers, params.length, base.anatomy.hidden_size), generator), project
                )
            ids = starts.token_ids(base, params.init_text, params.length, generator)
            return sources.Tied(torch.stack([starts.embeddings(base, ids)] * layers), project)
        if params.mlp:
            hidden = base.anatomy.hidden_size
            offset = None if params.init == "random" else self.start(base, generator)
            net = sources.mlp(hidden, params.mlp, prefix_width(base), zero_last=offset is not None)
            return sources.Encoded(starts.random(base, (params.length, hidden), generator), net, offset)
        return sources.Table(self.start(base, generator))

    def start(self, base: Base, generator: Generator) -> Tensor:
        """[P, width] starting values of the free form."""
        import torch

        from luthier.methods.modules import starts
        from luthier.methods.modules.virtual_tokens import prefix_width

        params = self.params
        if params.init == "random":
            return starts.random(base, (params.length, prefix_width(base)), generator)
        ids = starts.token_ids(base, params.init_text, params.length, generator)
        if params.init == "activations":
            return starts.activations(base, ids)
        words = starts.embeddings(base, ids).to(next(base.model.parameters()).device)
        with torch.no_grad():
            pairs = [project(words) for project in starts.projections(base)]
        return torch.cat([part for pair in pairs for part in pair], dim=-1).cpu()

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> VirtualTokens:
        """Read ours or PEFT's folder, as a free table."""
        from luthier.methods.modules.virtual_tokens import VirtualTokens

        return VirtualTokens.read(folder, base, "prefix", PEFT_TYPE, trainable)

    def formula(self, base: Base) -> int:
        """2·L·P·d_kv, or L·P·d tied, or the MLP's weights; and the task head."""
        from luthier.methods.modules.tuned import parameter_count

        anatomy, params = base.anatomy, self.params
        layers, hidden = len(anatomy.cached_attentions), anatomy.hidden_size
        width = 2 * layers * anatomy.num_kv_heads * anatomy.head_dim
        if params.tied:
            own = layers * params.length * hidden
        elif params.mlp:
            own = params.length * hidden + hidden * params.mlp + params.mlp + params.mlp * width + width
        else:
            own = params.length * width
        return own + parameter_count(base, ())
