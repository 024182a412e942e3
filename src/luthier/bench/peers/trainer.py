"""Hugging Face's Trainer over PEFT: the arms `transformers` and `documents`, and what all peers on top of it share.

transformers   4 rows × 4, dynamic padding, loss on the answers, the order of the rows kept
documents      the same padded to 512 with loss on every token, a common tutorial's setup
"""

from __future__ import annotations

import importlib.util
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .peer import Peer, Rows


class OnTrainer(Peer):
    """A peer whose loop is a Trainer over a PeftModel."""

    def load(self) -> Any:
        """Base and start adapter."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        work = self.work
        options: dict[str, Any] = {"dtype": work["dtype"], "attn_implementation": attention(work)}
        base = AutoModelForCausalLM.from_pretrained(work["model"], local_files_only=True, **options)
        return PeftModel.from_pretrained(base.to(work["device"]), work["start"], is_trainable=True)

    def reset(self, adapter: str) -> None:
        """The start adapter again, or the probe."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.model, load_file(Path(adapter) / "adapter_model.safetensors"))

    @abstractmethod
    def trainer(self, rows: Rows, **more: Any) -> Any:
        """This arm's trainer over these rows; `more` are options that come last."""

    def training(self, rows: Rows, one_step: bool) -> Callable[[], float]:
        """One step is made of more micro-batches than there can be."""
        more = {"max_grad_norm": 0.0, "gradient_accumulation_steps": len(rows)} if one_step else {}
        trainer = self.trainer(rows, **more)
        return lambda: float(trainer.train().training_loss)


class Arm(OnTrainer):
    """Plain Trainer."""

    def trainer(self, rows: Rows, **more: Any) -> Any:
        """Hugging Face's own."""
        from transformers import Trainer, TrainingArguments

        documents = self.arm == "documents"
        options = {**arguments(self.work, 4, self.work["rows_per_step"] // 4), **more}
        options |= {"train_sampling_strategy": "sequential", "remove_unused_columns": False}
        collate = collate_to(self.work["longest"] if documents else None, documents)
        return Trainer(self.model, TrainingArguments(**options), data_collator=collate, train_dataset=rows)


def attention(work: dict[str, Any]) -> str:
    """FlashAttention where it is installed and there is a GPU for it; else torch's own."""
    half = work["dtype"] in ("bfloat16", "float16")
    there = importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if work["device"] != "cpu" and half and there else "sdpa"


def arguments(work: dict[str, Any], rows: int, accumulate: int) -> dict[str, Any]:
    """What every Trainer takes."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "num_train_epochs": 1,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": work["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": work["clip_norm"],
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": work["device"] == "cpu",
        "bf16": work["dtype"] == "bfloat16",
        "seed": 0,
        "dataloader_pin_memory": work["device"] != "cpu",
    }


def packs_a_step(work: dict[str, Any]) -> int:
    """How many rows of `longest` tokens hold what a step's rows hold."""
    return max(1, round(work["rows_per_step"] * work["tokens"] / work["count"] / work["longest"]))


def by_length(rows: Rows) -> Rows:
    """The shortest first."""
    return sorted(rows, key=lambda row: len(row["input_ids"]))


def collate_to(width: int | None, everything: bool) -> Any:
    """Right-padded [B, L] batches; L is `width` or the longest row."""
    import torch

    def collate(rows: Rows) -> dict[str, Any]:
        size = width or max(len(row["input_ids"]) for row in rows)
        ids = torch.ones(len(rows), size, dtype=torch.int64)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[place, :length] = torch.tensor(row["input_ids"])
            labels[place, :length] = torch.tensor(row["input_ids"] if everything else row["labels"])
            mask[place, :length] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    return collate
