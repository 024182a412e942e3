"""`train:` of the recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luthier.core.settings import Settings


class ScheduleSettings(Settings):
    """How the learning rate moves."""

    name: Literal["auto", "cosine", "linear", "constant"] = "auto"
    """auto: the method's own (`luthier check` shows it)."""
    warmup: float | int | None = Field(None, ge=0)
    """Share of all steps (below 1) or a number of steps; null: the method's own."""
    floor: float = Field(0.0, ge=0, le=1)
    """The last rate as a share of the first."""

    def settled(self, name: str = "cosine", warmup: float = 0.1) -> ScheduleSettings:
        """With what it leaves open filled in."""
        chosen = {"name": name if self.name == "auto" else self.name}
        return self.model_copy(update={**chosen, "warmup": warmup if self.warmup is None else self.warmup})


class EarlyStopSettings(Settings):
    """Stop when the validation metric no longer improves, and restore the best weights."""

    metric: str = "loss"
    patience: int = Field(3, gt=0)
    """Evaluations without improvement."""
    min_delta: float = Field(0.001, ge=0)


class TrainSettings(Settings):
    """The loop."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows (3 when neither epochs nor steps is given)."""
    steps: int | None = Field(None, gt=0)
    """Optimizer steps, instead of epochs."""
    batch_tokens: int | None = Field(None, gt=0)
    """Tokens of one optimizer step (4096 when batch_size is not given)."""
    batch_size: int | None = Field(None, gt=0)
    """Rows of one micro-batch, instead of batch_tokens."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches of one optimizer step (with batch_size)."""
    micro_tokens: int | None = Field(None, gt=0)
    """Most tokens of one forward; batch_tokens above it are accumulated. null: 4096, halved where memory runs out."""
    lr: float | Literal["auto", "probe"] = "auto"
    """A number, auto (the method's default), or probe (short runs over a range on the real data)."""
    schedule: ScheduleSettings = ScheduleSettings()
    weight_decay: float = Field(0.01, ge=0)
    """Spares norms and biases."""
    optimizer: Literal["adamw", "adafactor", "sgd", "paged_adamw_8bit"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    z_loss: float = Field(0.0, ge=0)
    save_every: int | Literal["epoch", "never"] = "epoch"
    """Steps, each epoch, or never: then only the best and the last weights are kept."""
    evaluate_every: int | Literal["epoch", "never"] = "epoch"
    keep_checkpoints: int = Field(3, gt=0)
    early_stop: EarlyStopSettings | None = EarlyStopSettings()
    engine: Literal["auto", "plain"] = "auto"
    """auto: flat batches after a self-check against one-by-one; plain: padded batches."""
    activation_checkpointing: bool = False
    int8_base: bool = False
    """Frozen linear layers in int8 (GPU: fp8) while training; lossy: refused under a gradient's cosine of 0.99."""
    trunk_cache: bool = False
    """Keep the hidden states below the lowest trained layer on disk."""
    shared_prefix: bool = False
    """Rows of a batch that begin with the same tokens compute them once (exact; with dropout they share its draw)."""
    spikes: Literal["record", "stop", "rollback", "skip_row"] = "record"
    """What happens at a loss spike."""
    position_skipping: bool = False
    """With `context:`, short rows get positions from the whole new window (PoSE): a jump at a random place of each."""
    shifted_attention: int | None = Field(None, ge=2)
    """While training, tokens attend within groups of so many, half of the heads half a group later (S²-Attn; lossy)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Let torch compile the layers: auto, where a training on the CPU is so long that it pays (a GPU: only with on)."""
    threads: int | None = Field(None, gt=0)
    """torch threads; null: the physical cores. Recorded, since sums depend on it."""
    max_disk: str | None = None
    """Most disk that checkpoints may use: 2GB."""

    @model_validator(mode="after")
    def _one_of_each(self) -> TrainSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are given; keep one")
        if self.batch_tokens is not None and self.batch_size is not None:
            raise ValueError("batch_tokens and batch_size are given; keep one")
        if self.accumulate > 1 and self.batch_size is None:
            raise ValueError("accumulate needs batch_size (batch_tokens accumulates by itself, see micro_tokens)")
        return self
