"""Quantised bases through bitsandbytes (extra `quant`): 4-bit nf4 and 8-bit, for methods that leave the base alone.

Head and embeddings stay in their own precision; the weights that are trained are float32 whatever the base is.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from luthier.core.errors import MissingExtra


def quantization(kind: str) -> Any:
    """transformers' BitsAndBytesConfig for `nf4` or `int8`. MissingExtra without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise MissingExtra(f"model.quantize: {kind}", "quant")
    import torch
    from transformers import BitsAndBytesConfig

    kept = ["lm_head", "score", "classifier", "pre_classifier", "pooler"]
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    compute = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=kept,
    )
