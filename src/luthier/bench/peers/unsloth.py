"""Unsloth's model and its patched SFTTrainer, 16 rows a step, packing off.

**Written from its documented interface and never run**: it needs a GPU.
"""

from __future__ import annotations

import importlib
from typing import Any

from .peer import Rows
from .trl import Arm as OnTrl


class Arm(OnTrl):
    """As its documentation says: FastLanguageModel, then LoRA without dropout and without recomputation."""

    libraries = ("unsloth", "unsloth_zoo")

    def __init__(self, work: dict[str, Any], arm: str, given: Rows):
        importlib.import_module("unsloth")  # its documentation: before trl, transformers and peft
        super().__init__(work, arm, given)

    def load(self) -> Any:
        """Its own model."""
        from unsloth import FastLanguageModel

        work, lora = self.work, self.work["lora"]
        model, _ = FastLanguageModel.from_pretrained(
            model_name=work["model"], max_seq_length=work["longest"], dtype=None, load_in_4bit=False
        )
        return FastLanguageModel.get_peft_model(
            model, r=lora["r"], lora_alpha=lora["alpha"], target_modules=lora["targets"], lora_dropout=0, bias="none",
            use_gradient_checkpointing=False,
        )  # fmt: skip
