"""One arm of a peer, in the peer's own interpreter: imports nothing of luthier. Orders as in `worker.py`: "go".

transformers      Trainer + PEFT, 4 rows × 4, dynamic padding, loss on the answers, the order of the rows kept
documents         the same padded to 512 with loss on every token, a common tutorial's setup
trl               SFTTrainer at its defaults, 4 rows × 4
trl_grouped       16 rows, grouped by length
trl_sorted        16 rows in the order of their lengths: what grouping comes to over a large data set
trl_packing       packing to 512 (best-fit), about 16 rows a step
trl_padding_free  16 rows in one flat row
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def load(work: dict[str, Any]) -> Any:
    """Base and start adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(work["model"], local_files_only=True)
    return PeftModel.from_pretrained(base, work["start"], is_trainable=True)


def arguments(work: dict[str, Any], rows: int, accumulate: int) -> dict[str, Any]:
    """What both Trainers take."""
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
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "dataloader_pin_memory": False,
    }


def collate_to(width: int | None, everything: bool) -> Any:
    """Right-padded [B, L] batches; L is `width` or the longest row."""
    import torch

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
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


def plain_trainer(model: Any, work: dict[str, Any], rows: list[dict[str, Any]], documents: bool) -> Any:
    """Hugging Face's Trainer over a PEFT model."""
    from transformers import Trainer, TrainingArguments

    options = arguments(work, 4, work["rows_per_step"] // 4)
    options |= {"train_sampling_strategy": "sequential", "remove_unused_columns": False}
    collate = collate_to(work["longest"] if documents else None, documents)
    return Trainer(model, TrainingArguments(**options), data_collator=collate, train_dataset=rows)


def trl_trainer(model: Any, work: dict[str, Any], rows: list[dict[str, Any]], arm: str) -> Any:
    """TRL's SFTTrainer on pre-tokenised rows."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    batch = {"trl": 4, "trl_packing": max(1, round(work["rows_per_step"] * work["tokens"] / work["count"] / 512))}
    size = batch.get(arm, work["rows_per_step"])
    options = arguments(work, size, work["rows_per_step"] // 4 if arm == "trl" else 1)
    options |= {"max_length": work["longest"], "completion_only_loss": True, "gradient_checkpointing": False}
    if arm == "trl_grouped":
        options["train_sampling_strategy"] = "group_by_length"
    if arm == "trl_sorted":
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        options["train_sampling_strategy"] = "sequential"
    if arm == "trl_packing":
        options |= {"packing": True, "padding_free": False}
    if arm == "trl_padding_free":
        options["padding_free"] = True
    data = Dataset.from_dict(
        {
            "input_ids": [row["input_ids"] for row in rows],
            "completion_mask": [[int(label != -100) for label in row["labels"]] for row in rows],
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    return SFTTrainer(model, SFTConfig(**options), train_dataset=data, processing_class=tokenizer)


def reset(model: Any, work: dict[str, Any]) -> None:
    """The start adapter again."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(Path(work["start"]) / "adapter_model.safetensors"))


def main(folder: Path, arm: str, threads: int) -> None:
    """Answer orders until stdin ends. The peers print: our answers go to the stdout that we were born with."""
    import os

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(threads)
    work = json.loads((folder / "work.json").read_text("utf-8"))
    rows = json.loads(Path(work["rows"]).read_text("utf-8"))
    model, slots = load(work), [0]

    def count(module: Any, given: tuple[Any, ...]) -> None:
        slots[0] += given[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(count)
    for line in sys.stdin:
        order = json.loads(line)
        reset(model, work)
        named = arm in ("transformers", "documents")
        trainer = plain_trainer(model, work, rows, arm == "documents") if named else trl_trainer(model, work, rows, arm)
        slots[0] = 0
        cpu, wall = time.process_time(), time.perf_counter()
        trainer.train()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        model.save_pretrained(order["save"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)
        answers.write(json.dumps({"cpu_s": cpu, "wall_s": wall, "slots": slots[0], "peak_rss_mb": peak}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
