"""What tuning does for the built-in base: tasks x {untouched, LoRA, full, LoRA on random weights}, people held out.

    python benchmarks/bench_builtin.py [--base DIR] [--control DIR] [--tasks short_en card] [--steps 200] [--out FILE]

Plain PEFT and a plain loop, so that the numbers say something about the base and not about luthier's own loop.
Half of the people are trained on, the other half is asked: exact match for answers, accuracy for `classify`.
`--control` adds LoRA on another base, such as one trained with `build --shuffled`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from luthier.data import builtin
from luthier.models.builtin import folder
from luthier.models.builtin.world import people

TASKS = ("short_en", "short_zh", "biography", "card", "instruct", "classify")
ARMS = ("base", "lora", "full", "random_lora", "control_lora")
BATCH, RATE, RATE_FULL = 32, 5e-3, 2e-3
NEW_TOKENS, ASKED = 48, 320

Row = dict[str, str]


def halves(task: str) -> tuple[list[Row], list[Row]]:
    """Rows about one half of the people, rows about the other."""
    names = [person.name for person in people()]
    random.Random(0).shuffle(names)
    asked = set(names[len(names) // 2 :])
    rows = [json.loads(line) for line in builtin.path(task).read_text("utf-8").splitlines()]
    return [row for row in rows if row["group"] not in asked], [row for row in rows if row["group"] in asked][:ASKED]


def prompt(tokenizer: PreTrainedTokenizerFast, row: Row) -> list[int]:
    """The question as the model is asked it, through the chat template."""
    said = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encoded(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels): only the answer and its stop token carry loss."""
    made = []
    for row in rows:
        asked = prompt(tokenizer, row)
        answer = [*tokenizer(row["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        made.append(([*asked, *answer], [-100] * len(asked) + answer))
    return made


def batch(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows]),
    }


def exact(model: Any, tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> float:
    """Share of rows whose greedy answer is the wanted one, letter for letter."""
    model.eval()
    tokenizer.padding_side = "left"
    right = 0
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        inputs = tokenizer.pad({"input_ids": [prompt(tokenizer, row) for row in part]}, return_tensors="pt")
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        said = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text.strip() == row["output"] for text, row in zip(said, part, strict=True))
    return right / len(rows)


def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, rows: list[Row], labels: list[str]) -> float:
    """Share of rows with the right class."""
    model.eval()
    tokenizer.padding_side = "right"
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        chosen = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.argmax(-1)
    return sum(labels[index] == row["label"] for index, row in zip(chosen.tolist(), rows, strict=True)) / len(rows)


def load(base: str, arm: str, classes: int, seed: int) -> Any:
    """The model of an arm, with its adapter and head."""
    torch.manual_seed(seed)
    kind = AutoModelForSequenceClassification if classes else AutoModelForCausalLM
    options: dict[str, Any] = {"num_labels": classes} if classes else {}
    if arm == "random_lora":
        model = kind.from_config(AutoConfig.from_pretrained(base, **options), dtype=torch.float32)
    else:
        model = kind.from_pretrained(base, dtype=torch.float32, **options)
    if arm.endswith("lora"):
        task_type = "SEQ_CLS" if classes else "CAUSAL_LM"
        modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type=task_type))
    return model


def train(model: Any, rows: list[Any], collate: Any, steps: int, rate: float, seed: int) -> float:
    """AdamW, warm-up over 5 %, then linear; the seconds that it took."""
    order = random.Random(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    model.train()
    began, queue = time.perf_counter(), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / (0.05 * steps), 1 - step / steps)
        if len(queue) < BATCH:
            queue = order.sample(rows, len(rows)) + queue
        part, queue = queue[-BATCH:], queue[:-BATCH]
        model(**collate(part)).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def answers(base: str, arm: str, task: str, steps: int, seed: int) -> dict[str, float]:
    """Exact match on the held-out people, and on the trained ones."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    learnt, asked = halves(task)
    model = load(base, arm, 0, seed)
    seconds = 0.0
    if arm != "base":
        rate = RATE_FULL if arm == "full" else RATE
        seconds = train(
            model, encoded(tokenizer, learnt), lambda r: batch(r, tokenizer.pad_token_id), steps, rate, seed
        )
    return {"score": exact(model, tokenizer, asked), "train": exact(model, tokenizer, learnt[:160]), "seconds": seconds}


def classes(base: str, arm: str, task: str, steps: int, seed: int) -> dict[str, float]:
    """Accuracy on the held-out people, and on the trained ones, of a head on the last token."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    learnt, asked = halves(task)
    labels = sorted({row["label"] for row in learnt})
    model = load(base, arm, len(labels), seed)
    seconds = 0.0

    def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
        tokenizer.padding_side = "right"
        made = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        targets = torch.tensor([labels.index(row["label"]) for row in rows])
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"], "labels": targets}

    if arm != "base":
        seconds = train(model, learnt, collate, steps, RATE_FULL if arm == "full" else RATE, seed)
    return {
        "score": accuracy(model, tokenizer, asked, labels),
        "train": accuracy(model, tokenizer, learnt[:160], labels),
        "seconds": seconds,
    }


def main() -> None:
    """Command line; prints a line per measurement and writes all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(folder()))
    parser.add_argument("--control", help="another base for the arm control_lora")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    found: list[dict[str, Any]] = []
    for task in options.tasks:
        for arm in options.arms:
            base = options.control if arm == "control_lora" else options.base
            for seed in options.seeds[: 1 if arm == "base" else None] if base else ():
                measured = (classes if task == "classify" else answers)(base, arm, task, options.steps, seed)
                found.append({"task": task, "arm": arm, "seed": seed, **{k: round(v, 4) for k, v in measured.items()}})
                sys.stdout.write(json.dumps(found[-1]) + "\n")
                sys.stdout.flush()
    if options.out:
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
        training = json.loads((Path(options.base) / "training.json").read_text("utf-8"))
        everything = {
            "machine": machine,
            "steps": options.steps,
            "asked": ASKED,
            "base": training,
            "measurements": found,
        }
        options.out.write_text(json.dumps(everything, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
