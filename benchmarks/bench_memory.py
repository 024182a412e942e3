"""The plan of `luthier check` against what a run then takes: peak memory and training time, in twelve settings.

    python benchmarks/bench_memory.py [--out FILE.json]

A Llama of 10 M weights is made from a config, with the built-in tokenizer; rows are built-in. Every check and every run
is a process of its own. Memory is the peak resident memory at the end of training (measuring and reporting come later
and are not planned for). Finished settings are kept, so that the same command continues.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core import atomic

RECIPE = """
data: {train: "builtin:instruct", max_rows: 200, max_length: 256}
method: {name: lora, r: 8}
train: {steps: 2, early_stop: null, evaluate_every: never, save_every: never, threads: 1}
evaluate: {samples: {count: 0}, generate_rows: 0, bootstrap: 100}
"""
SETTINGS: dict[str, tuple[str, ...]] = {
    "lora, 512 tokens": ("train.batch_tokens=512",),
    "lora, 2048 tokens": ("train.batch_tokens=2048",),
    "lora, 4096 tokens": ("train.batch_tokens=4096",),
    "lora, 8192 tokens in micro-batches of 2048": ("train.batch_tokens=8192", "train.micro_tokens=2048"),
    "lora, 4096 tokens, activation checkpointing": ("train.batch_tokens=4096", "train.activation_checkpointing=true"),
    "lora, 4096 tokens, padded": ("train.batch_tokens=4096", "train.engine=plain"),
    "lora, 4096 tokens, int8": ("train.batch_tokens=4096", "train.int8_base=true"),
    "lora, 4096 tokens, top layer, trunk cache": (
        "train.batch_tokens=4096",
        "method.layers=[-1]",
        "train.trunk_cache=true",
    ),
    "prefix, 4096 tokens": ("train.batch_tokens=4096", "method={name: prefix, length: 16}"),
    "bottleneck, 4096 tokens": ("train.batch_tokens=4096", "method={name: bottleneck}"),
    "full, 2048 tokens": ("train.batch_tokens=2048", "method={name: full}"),
    "full, 2048 tokens, adafactor": ("train.batch_tokens=2048", "method={name: full}", "train.optimizer=adafactor"),
}
SHAPE = {
    "hidden_size": 320,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "max_position_embeddings": 512,
}


def main() -> None:
    """Check and run every setting that is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    parser.add_argument("--worker", nargs=2, metavar=("check|run", "NAME"))
    parser.add_argument("--model", default="")
    given = parser.parse_args()
    if given.worker:
        worker(*given.worker, model=given.model)
        return
    kept = json.loads(given.out.read_text("utf-8"))["settings"] if given.out.is_file() else {}
    with TemporaryDirectory() as scratch:
        model = make_model(Path(scratch) / "model")
        for name in SETTINGS:
            if name not in kept:
                kept[name] = {**ask("check", name, model), **ask("run", name, model)}
                errors = [part["planned_mb"] / part["peak_mb"] - 1 for part in kept.values()]
                facts = {"worst": max(errors, key=abs), "median": statistics.median(map(abs, errors))}
                atomic.write_json(given.out, {"shape": SHAPE, "error": facts, "settings": kept})


def make_model(folder: Path) -> Path:
    """Random weights and the built-in tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    source = load_base(ModelSettings()).path
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ask(what: str, name: str, model: Path) -> dict[str, Any]:
    """One process."""
    command = [sys.executable, __file__, "--worker", what, name, "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Trained(BaseException):
    """The training is over; what comes later is not measured."""


def worker(what: str, name: str, model: str) -> None:
    """Plan or run one setting; one JSON line."""
    from luthier.pipeline import estimate, story
    from luthier.recipe import Recipe

    recipe = Recipe.parse(RECIPE, f"model.path={model}", *SETTINGS[name])
    if what == "check":
        found = story.check(recipe)
        if not found["ok"]:
            raise SystemExit(str(found["problems"]))
        plan = found["plan"]
        answer: dict[str, float] = {"planned_mb": plan["memory_mb"], "planned_s": plan["training_s"]}
    else:
        answer = {}

        def listen(record: dict[str, Any]) -> None:
            if record["kind"] == "train":
                answer["measured_s"] = round(answer.get("measured_s", 0.0) + record["seconds"], 1)
            if record["kind"] == "finished":
                answer["peak_mb"] = round(estimate.peak_bytes() / 1e6)
                raise Trained

        with suppress(Trained):
            story.run(recipe, Path(model).parent / name.replace(" ", "_"), [listen])
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
