"""Low-rank updates of linear layers (LoRA, rsLoRA, DoRA, PiSSA, OLoRA, EVA, LoRA+), in PEFT's format.

    y = W x + s · B A x,   A [r, in], B [out, r],  s = alpha / r   (rsLoRA: alpha / √r)

Hu et al. 2021; Kalajdzievski 2023 (rsLoRA); Liu et al. 2024 (DoRA); Meng et al. 2024 (PiSSA);
Büyükakyüz 2024 (OLoRA); Paischer et al. 2024 (EVA); Hayou et al. 2024 (LoRA+).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.core.settings import Settings
from luthier.methods import METHODS, rates, targets

if TYPE_CHECKING:
    from luthier.methods.modules.low_rank import LowRank
    from luthier.models.base import Base


@METHODS.register("lora")
class Lora:
    """Low-rank updates of linear layers."""

    name: ClassVar[str]
    default_lr = 5e-4
    default_schedule: ClassVar[dict[str, Any]] = {"name": "cosine", "warmup": 0.1}
    lr_reason = (
        "LoRA wants about ten times the rate of full tuning, nearly independent of the rank; "
        "it falls with the square root of the model's width"
    )

    class Params(Settings):
        """LoRA's settings."""

        r: int = Field(16, gt=0, le=4096)
        """Rank."""
        alpha: float | None = Field(None, gt=0)
        """Scale: s = alpha / r. null: 2 r."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """On the branch's input."""
        targets: str | tuple[str, ...] = "auto"
        """auto (all linear layers of the blocks) | names, roles (q, v, down …) or globs."""
        layers: tuple[int, ...] | None = None
        """Only these layers; negative numbers count from the end."""
        rank_pattern: dict[str, int] = Field(default_factory=dict)
        """Name ending → its own rank."""
        alpha_pattern: dict[str, float] = Field(default_factory=dict)
        """Name ending → its own alpha."""
        rslora: bool = False
        """Scale by alpha / √r, which keeps large ranks learning."""
        dora: bool = False
        """Train direction and magnitude apart."""
        init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva"] = "default"
        """pissa and olora start in the weight's own main directions (saved as a plain LoRA of rank 2 r), eva in
        those of what each layer reads on the first rows."""
        lora_plus: float | None = Field(None, gt=0)
        """Learning rate of B over that of A (LoRA+; the paper uses 16)."""
        bias: Literal["none", "lora_only", "all"] = "none"
        """Biases that are trained too."""
        train_norms: bool = False
        """Train all norms fully (helps window extension)."""
        train_embeddings: bool = False
        """Train the embeddings (and a tied head) fully."""
        train_tokens: tuple[int | str, ...] = ()
        """Train only these rows of the embeddings: token ids or token strings."""

        @model_validator(mode="after")
        def _consistent(self) -> Lora.Params:
            if self.init in ("pissa", "olora") and (self.dora or self.rank_pattern or self.alpha_pattern):
                raise ValueError(f"init {self.init} goes with neither dora nor patterns")
            if self.train_embeddings and self.train_tokens:
                raise ValueError("train_embeddings and train_tokens are given; keep one")
            if any(rank <= 0 for rank in self.rank_pattern.values()):
                raise ValueError("ranks in rank_pattern must be positive")
            return self

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    @classmethod
    def lr_for(cls, base: Base) -> float:
        """The default rate for this model's width; encoders take more of it."""
        rate = cls.default_lr * (rates.ENCODERS if base.kind == "encoder" else 1)
        return rates.for_width(rate, base.anatomy.hidden_size, low=1e-4, high=3e-3)

    def attach(self, base: Base, seed: int) -> LowRank:
        """Inject LoRA layers; identity at the first step."""
        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.low_rank import LowRank

        seed_everything(seed)
        self._refuse_packed(base)
        names = self._names(base)
        attached = LowRank(base, self._config(base, names), self._also(base, names))
        if self.params.init in ("pissa", "olora"):
            attached.start_from_weights(self.params.init)
        attached.wants_inputs = self.params.init == "eva"
        if self.params.lora_plus:
            attached.lr_factors = {
                n: self.params.lora_plus for n in attached.own if "lora_B" in n or "embedding_B" in n
            }
        return attached

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> LowRank:
        """Read an adapter folder, ours or PEFT's."""
        from luthier.methods.modules.low_rank import LowRank

        return LowRank.read(folder, base, trainable)

    def _names(self, base: Base) -> list[str]:
        """The targets; a pattern that is none of theirs is an error."""
        names = targets.resolve(base, self.params.targets, self.params.layers)
        targets.check_patterns(names, self.params.rank_pattern, "method.rank_pattern")
        targets.check_patterns(names, self.params.alpha_pattern, "method.alpha_pattern")
        return names

    def _refuse_packed(self, base: Base) -> None:
        from luthier.core.errors import ModelError

        on_cpu = next(base.model.parameters()).device.type == "cpu"
        if self.params.dora and on_cpu and targets.packing(base) == "int8":
            raise ModelError(
                "DoRA reads the norms of the frozen weights, which 8-bit weights on a CPU do not give",
                where="method.dora",
                remedy="dora: false, or model.quantize: nf4",
            )

    def _alpha(self) -> float:
        return self.params.alpha if self.params.alpha is not None else 2.0 * self.params.r

    def _config(self, base: Base, names: list[str]) -> Any:
        from peft import LoraConfig

        params = self.params
        inits: dict[str, Any] = {"gaussian": "gaussian", "orthogonal": "orthogonal"}
        return LoraConfig(
            r=params.r,
            lora_alpha=_whole(self._alpha()),
            lora_dropout=params.dropout,
            target_modules=targets.short_names(base, names),
            rank_pattern=dict(params.rank_pattern),
            alpha_pattern={name: _whole(value) for name, value in params.alpha_pattern.items()},
            use_rslora=params.rslora,
            use_dora=params.dora,
            init_lora_weights=inits.get(params.init, True),
            bias=params.bias,
            fan_in_fan_out=any(targets.is_transposed(base, name) for name in names),
            trainable_token_indices=self._token_rows(base) or None,
        )

    def _token_rows(self, base: Base) -> list[int]:
        from luthier.core.errors import ModelError

        table: Any = base.model.get_input_embeddings()
        rows, size = [], int(table.weight.shape[0])
        for token in self.params.train_tokens:
            index: Any = base.tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else token
            unknown = isinstance(token, str) and base.tokenizer.convert_ids_to_tokens(index) != token
            if index is None or unknown or not 0 <= index < size:
                raise ModelError(f"the tokenizer has no token {token!r}", where="method.train_tokens")
            rows.append(int(index))
        return sorted(set(rows))

    def _also(self, base: Base, names: list[str]) -> tuple[str, ...]:
        """Modules and biases of the base that are trained in place."""
        from luthier.methods.selection import biases, embeddings, norms

        also: list[str] = []
        if self.params.train_norms:
            also += norms(base)
        if self.params.train_embeddings:
            also += embeddings(base)
        if self.params.bias != "none":
            inside = tuple(names) if self.params.bias == "lora_only" else None
            also += biases(base, inside)
        return tuple(also)

    def formula(self, base: Base) -> int:
        """Σ r (in + out) over the targets (+ out for DoRA) + trained rows + what is trained in place."""
        from luthier.methods.modules.tuned import parameter_count

        names = self._names(base)
        total = 0
        for name in names:
            wide, out = targets.shape_of(base, name)
            total += self._rank(name) * (wide + out) + (out if self.params.dora else 0)
        table: Any = base.model.get_input_embeddings()
        rows = len(self._token_rows(base)) * int(table.weight.shape[1])
        return total + rows + parameter_count(base, self._also(base, names))

    def _rank(self, name: str) -> int:
        for pattern, rank in self.params.rank_pattern.items():
            if targets.fits_pattern(pattern, name):
                return rank
        return self.params.r


def _whole(value: float) -> Any:
    """PEFT writes whole alphas as integers."""
    return int(value) if math.isclose(value, round(value)) else value
