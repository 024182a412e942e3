"""Peak memory and seconds per step of the built-in base at 1×, 2×, 4× and 8× of its window: planned and measured.

    python benchmarks/bench_context_memory.py [--times 1 2 4 8] [--out benchmarks/results/context_memory.json]

Every arm sees the same 4096 tokens an update, as rows of 512 × times tokens; LoRA with norms and embeddings, one
thread. Planned is what `luthier check` says; measured is the `train` events of `luthier run`, stopped after a few
steps (median of the seconds of all steps but the first; largest memory). Each is a process of its own. An arm that
stands in the file is not run again. `8 checkpointed` recomputes the activations. About 3 minutes on one free core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WINDOW, TOKENS, STEPS = 512, 4096, 4
OUT = Path(__file__).parent / "results" / "context_memory.json"


def documents(path: Path) -> None:
    """Twelve documents of 4096 tokens each, made of the built-in long ones."""
    from transformers import AutoTokenizer

    from luthier.models.load import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin"))
    source = Path(__file__).parents[1] / "src" / "luthier" / "data" / "builtin" / "long.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    ids = tokenizer("\n".join(texts), verbose=False)["input_ids"]
    cut = [tokenizer.decode(ids[start : start + TOKENS - 8]) for start in range(0, 12 * TOKENS, TOKENS)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in cut), "utf-8")


def recipe(times: int, checkpointed: bool, data: Path) -> Any:
    """The recipe of one arm."""
    from luthier.recipe import Recipe

    context = {"name": "yarn", "length": WINDOW * times} if times > 1 else "none"
    return Recipe(
        model={"path": "builtin"}, task="language_model", context=context,
        method={"name": "lora", "r": 8, "train_norms": True, "train_embeddings": True},
        data={"train": str(data), "template": "plain", "max_length": WINDOW * times,
              "split": {"validation": 1, "test": 1, "group": "none"}},
        train={"steps": STEPS, "batch_tokens": TOKENS, "lr": 1e-3, "evaluate_every": "never", "threads": 1,
               "activation_checkpointing": checkpointed},
        evaluate={"samples": {"count": 0}},
    )  # fmt: skip


def child(kind: str, times: int, checkpointed: bool, data: Path) -> None:
    """Prints one JSON object and ends this process, whatever would come after."""
    from luthier.pipeline import story

    made = recipe(times, checkpointed, data)
    if kind == "plan":
        plan = story.check(made)["plan"]
        _tell({"memory_mb": plan["memory_mb"], "training_s": plan["training_s"], "steps": plan["steps"]})
    seen: list[dict[str, Any]] = []

    def listen(record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            seen.append(record)
            if len(seen) == STEPS:
                seconds = statistics.median(one["seconds"] for one in seen[1:])
                tokens = statistics.median(one["tokens"] for one in seen)
                _tell({"memory_mb": max(one["memory_mb"] for one in seen), "step_s": seconds, "tokens": tokens})

    story.run(made, data.parent / f"run-{times}-{checkpointed}", [listen])


def _tell(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)


def of(kind: str, times: int, checkpointed: bool, data: Path) -> dict[str, Any]:
    """What the child process of this arm says."""
    words = [sys.executable, __file__, "--child", kind, str(times), str(int(checkpointed)), str(data)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def arm(times: int, checkpointed: bool, data: Path) -> dict[str, Any]:
    """Planned beside measured. The plan's seconds are those of its steps and of two validations of one
    document."""
    planned, measured = of("plan", times, checkpointed, data), of("run", times, checkpointed, data)
    validations = 2 / 3  # in steps: two forwards of one document
    seconds = planned["training_s"] / (planned["steps"] + validations)
    return {
        "window": WINDOW * times,
        "tokens_per_step": measured["tokens"],
        "planned": {"memory_mb": planned["memory_mb"], "step_s": round(seconds, 2)},
        "measured": {"memory_mb": round(measured["memory_mb"]), "step_s": round(measured["step_s"], 2)},
    }


def main() -> int:
    """Run the arms that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", nargs="+", default=["1", "2", "4", "8", "8 checkpointed"])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", nargs=4)
    asked = parser.parse_args()
    if asked.child:
        kind, times, checkpointed, data = asked.child
        child(kind, int(times), bool(int(checkpointed)), Path(data))
    known = json.loads(asked.out.read_text("utf-8")) if asked.out.is_file() else {"arms": {}}
    known |= {"machine": f"{platform.machine()} {platform.system()}", "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "long.jsonl"
        documents(data)
        for name in asked.times:
            if name in known["arms"]:
                continue
            known["arms"][name] = arm(int(name.split()[0]), "checkpointed" in name, data)
            sys.stdout.write(f"{name}: {known['arms'][name]}\n")
            sys.stdout.flush()
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
