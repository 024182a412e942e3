"""`model:` of the recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.core.settings import Settings


class ModelSettings(Settings):
    """Which base model, and how it is loaded."""

    path: str = "builtin"
    """builtin | a local folder | a hub id (only when it is already in the local cache, or online)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen weights. auto: float32 on CPU, bfloat16 on a GPU that has it. Trained weights are float32."""
    device: str = "auto"
    """auto | cpu | cuda | cuda:0 …"""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Quantised base through bitsandbytes (extra `quant`)."""
    random_init: bool = False
    """Build the architecture from its config with fresh weights: pre-training and controls."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Set every dropout of the architecture (each one that is called is proved to act); null keeps the model's own."""
