"""One arm of a peer, in the peer's own interpreter: imports nothing of luthier. Orders as in `worker.py`:
check, warm, go. The check goes through the peer's whole loop too: one step whose gradients are taken before its update.

transformers      Trainer + PEFT, 4 rows × 4, dynamic padding, loss on the answers, the order of the rows kept
documents         the same padded to 512 with loss on every token, a common tutorial's setup
trl               SFTTrainer at its defaults, 4 rows × 4
trl_grouped       16 rows, grouped by length
trl_sorted        16 rows in the order of their lengths: what grouping comes to over a large data set
trl_packing       packing to 512 (best-fit), about 16 rows a step
trl_padding_free  16 rows in one flat row
unsloth           its model and its patched SFTTrainer, 16 rows a step, packing off. **Written from its documented
                  interface and never run**: it needs a GPU
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "unsloth", "flash_attn", "liger_kernel")


def load(work: dict[str, Any], arm: str) -> Any:
    """Base and start adapter."""
    if arm == "unsloth":
        return load_unsloth(work)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": work["dtype"], "attn_implementation": attention(work)}
    base = AutoModelForCausalLM.from_pretrained(work["model"], local_files_only=True, **options)
    return PeftModel.from_pretrained(base.to(work["device"]), work["start"], is_trainable=True)


def attention(work: dict[str, Any]) -> str:
    """FlashAttention where it is installed and there is a GPU for it; else torch's own."""
    half = work["dtype"] in ("bfloat16", "float16")
    there = importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if work["device"] != "cpu" and half and there else "sdpa"


def load_unsloth(work: dict[str, Any]) -> Any:
    """As its documentation says: FastLanguageModel, then LoRA without dropout and without recomputation. Never run."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name=work["model"], max_seq_length=work["longest"], dtype=None, load_in_4bit=False
    )
    lora = work["lora"]
    return FastLanguageModel.get_peft_model(
        model, r=lora["r"], lora_alpha=lora["alpha"], target_modules=lora["targets"], lora_dropout=0, bias="none",
        use_gradient_checkpointing=False,
    )  # fmt: skip


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
        "use_cpu": work["device"] == "cpu",
        "bf16": work["dtype"] == "bfloat16",
        "seed": 0,
        "dataloader_pin_memory": work["device"] != "cpu",
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


def plain_trainer(model: Any, work: dict[str, Any], rows: list[dict[str, Any]], arm: str, **more: Any) -> Any:
    """Hugging Face's Trainer over a PEFT model."""
    from transformers import Trainer, TrainingArguments

    documents = arm == "documents"
    options = {**arguments(work, 4, work["rows_per_step"] // 4), **more}
    options |= {"train_sampling_strategy": "sequential", "remove_unused_columns": False}
    collate = collate_to(work["longest"] if documents else None, documents)
    return Trainer(model, TrainingArguments(**options), data_collator=collate, train_dataset=rows)


def trl_trainer(model: Any, work: dict[str, Any], rows: list[dict[str, Any]], arm: str, **more: Any) -> Any:
    """TRL's SFTTrainer on pre-tokenised rows."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    packs = round(work["rows_per_step"] * work["tokens"] / work["count"] / work["longest"])
    batch = {"trl": 4, "trl_packing": max(1, packs)}
    size = batch.get(arm, work["rows_per_step"])
    options = arguments(work, size, work["rows_per_step"] // 4 if arm == "trl" else 1)
    options |= {"max_length": work["longest"], "completion_only_loss": True, "gradient_checkpointing": False, **more}
    if arm == "trl_grouped":
        options["train_sampling_strategy"] = "group_by_length"
    if arm == "trl_sorted":
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        options["train_sampling_strategy"] = "sequential"
    if arm == "trl_packing":
        options |= {"packing": True, "padding_free": False}
    if arm == "trl_padding_free":
        options |= {"padding_free": True, "max_length": None}  # TRL refuses a length here; no row is longer
    data = Dataset.from_dict(
        {
            "input_ids": [row["input_ids"] for row in rows],
            "completion_mask": [[int(label != -100) for label in row["labels"]] for row in rows],
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    return SFTTrainer(model, SFTConfig(**options), train_dataset=data, processing_class=tokenizer)


def reset(model: Any, adapter: str) -> None:
    """The start adapter again, or the probe."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(Path(adapter) / "adapter_model.safetensors"))


def trainer_of(model: Any, work: dict[str, Any], rows: list[dict[str, Any]], arm: str, **more: Any) -> Any:
    """This arm's trainer over these rows."""
    make = plain_trainer if arm in ("transformers", "documents") else trl_trainer
    return make(model, work, rows, arm, **more)


def check(model: Any, work: dict[str, Any], rows: list[dict[str, Any]], arm: str, save: str) -> dict[str, Any]:
    """Loss and gradients of one step over the checked rows, whatever micro-batches it takes, without clipping."""
    from safetensors.torch import save_file
    from transformers import TrainerCallback

    reset(model, work["probe"])
    found: dict[str, Any] = {}

    class Take(TrainerCallback):
        """Keeps the gradients that the optimizer is about to see."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Called once: everything is one step."""
            named = ((name, weight) for name, weight in model.named_parameters() if weight.grad is not None)
            found.update((name, weight.grad.detach().float().cpu().clone()) for name, weight in named)

    few = [rows[index] for index in work["checked"]]
    trainer = trainer_of(model, work, few, arm, max_grad_norm=0.0, gradient_accumulation_steps=len(few))
    trainer.add_callback(Take())
    done = trainer.train()
    save_file(found, save)
    return {"loss": done.training_loss, "gradients": save, "steps": done.global_step, "versions": versions()}


def versions() -> dict[str, str]:
    """Of what is installed here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def epoch(model: Any, work: dict[str, Any], rows: list[dict[str, Any]], arm: str, slots: list[int]) -> dict[str, Any]:
    """The peer's own whole loop; a GPU is waited for."""
    import torch

    reset(model, work["start"])
    trainer = trainer_of(model, work, rows, arm)
    slots[0] = 0
    wait = (lambda: None) if work["device"] == "cpu" else torch.cuda.synchronize
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train()
    wait()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "slots": slots[0]}


def peaks(work: dict[str, Any]) -> dict[str, float]:
    """Peak resident memory of this process, and what it had on the GPU at most."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak_rss_mb": resident / (1 << 20 if sys.platform == "darwin" else 1024)}
    if work["device"] != "cpu":
        import torch

        found["peak_cuda_mb"] = torch.cuda.max_memory_allocated() / (1 << 20)
    return found


def main(folder: Path, arm: str, threads: int) -> None:
    """Answer orders until stdin ends. The peers print: our answers go to the stdout that we were born with."""
    import os

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if arm == "unsloth":
        importlib.import_module("unsloth")  # its documentation: before trl, transformers and peft
    import torch

    torch.set_num_threads(threads)
    work = json.loads((folder / "work.json").read_text("utf-8"))
    rows = json.loads(Path(work["rows"]).read_text("utf-8"))
    model, slots = load(work, arm), [0]

    def count(module: Any, given: tuple[Any, ...]) -> None:
        slots[0] += given[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(count)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "check":
            answer = check(model, work, rows, arm, order["save"])
        else:
            few = rows[: work["rows_per_step"]] if order["do"] == "warm" else rows
            answer = epoch(model, work, few, arm, slots)
        if order["do"] == "go":
            model.save_pretrained(order["save"])
        answers.write(json.dumps({**answer, **peaks(work)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
