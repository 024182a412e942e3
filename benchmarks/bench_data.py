"""Rows a second and peak memory of read → split → encode → inspect → pack, against `datasets.map`.

    python benchmarks/bench_data.py --text FOLDER --rows 10000 100000 1000000 --out benchmarks/results/data.json

Rows are runs of words from the text files of a folder (about 500 bytes and 100 tokens each), written as JSON Lines.
The tokenizer, unless one is named, is a byte-level BPE of 32,000 tokens made from the same files. luthier and
`datasets` read the same file in processes of their own, one after the other. `datasets.map` only tokenises; luthier
also makes the loss mask, so its rows cost more work. `encode_batch` is the tokenizer alone, the bound of both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 32_000
SIDES = ("train", "validation", "test")


def write_rows(path: Path, count: int, words: list[str]) -> None:
    """Instruction rows of consecutive words, seeded."""
    rng = random.Random(0)

    def some(size: int) -> str:
        start = rng.randrange(len(words) - size)
        return " ".join(words[start : start + size])

    with open(path, "w", encoding="utf-8") as handle:
        for number in range(count):
            row = {
                "instruction": some(rng.randint(15, 35)) + "?",
                "input": some(20) if number % 2 else "",
                "output": some(40),
            }
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def make_tokenizer(files: list[Path], folder: Path) -> None:
    """Train a byte-level BPE and save it as transformers does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train([str(file) for file in files], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<pad>", model_max_length=1 << 20
    ).save_pretrained(folder)


class Clock:
    """Wall and CPU seconds of named steps, and the peak memory of the process after each."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}

    def step(self, name: str, rows: int, work: Callable[[], Any]) -> Any:
        """Run and record."""
        wall, cpu = time.perf_counter(), time.process_time()
        made = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.steps[name] = {
            "rows_per_s": round(rows / wall),
            "rows_per_cpu_s": round(rows / max(cpu, 1e-9)),
            "peak_mb": round(peak()),
        }
        return made


def peak() -> float:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def luthier(path: Path, rows: int, tokenizer_folder: str) -> dict[str, Any]:
    """read → split → encode → inspect → pack, as every run does it; then encode again from the cache."""
    clock = Clock()
    from luthier.data import load, split
    from luthier.data.settings import DataSettings

    settings = DataSettings(train=str(path))
    loaded = clock.step("read", rows, lambda: load.load(settings, "instruct"))
    splits = clock.step("split", rows, lambda: split.split(loaded, settings.split, "instruct"))
    from transformers import AutoTokenizer

    from luthier.data import encode, inspect, templates

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    template = templates.choose("alpaca", tokenizer, "instruct")
    stop = int(tokenizer.eos_token_id)
    with tempfile.TemporaryDirectory() as cache:

        def encoded() -> dict[str, Any]:
            options: dict[str, Any] = {"labels": None, "stop_id": stop, "cache": Path(cache)}
            return {
                side: encode.encode(getattr(splits, side), template, tokenizer, settings, "instruct", **options)
                for side in SIDES
            }

        made = clock.step("encode", rows, encoded)
        tokens = sum(int(part.lengths.sum()) for part in made.values())
        found = clock.step(
            "inspect", rows, lambda: inspect.inspect(loaded, splits, made, tokenizer, template, settings)
        )
        from luthier.data.batching import BatchPlan

        train = made["train"]
        steps = clock.step("pack", len(train), lambda: BatchPlan(train, batch_tokens=16384, seed=1).steps(0))
        clock.step("encode_again", rows, encoded)
    facts = {"tokens_per_row": round(tokens / rows, 1), "steps": steps, "problems": len(found.problems)}
    return {"arm": "luthier", "rows": rows, **facts, **clock.steps}


def texts_of(asks: list[str], more: list[str], answers: list[str]) -> list[str]:
    """The rows as plain strings."""
    return [
        f"### Instruction:\n{ask}\n\n### Input:\n{extra}\n\n### Response:\n{answer}"
        for ask, extra, answer in zip(asks, more, answers, strict=True)
    ]


def datasets_map(path: Path, rows: int, tokenizer_folder: str) -> dict[str, Any]:
    """load_dataset → map with the same tokenizer on the same text."""
    clock = Clock()
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with tempfile.TemporaryDirectory() as cache:

        def read() -> Any:
            return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)

        data = clock.step("read", rows, read)

        def tokens(batch: dict[str, list[str]]) -> dict[str, Any]:
            texts = texts_of(batch["instruction"], batch["input"], batch["output"])
            return {"input_ids": tokenizer(texts, truncation=True, max_length=512)["input_ids"]}

        clock.step("encode", rows, lambda: data.map(tokens, batched=True, remove_columns=data.column_names))
    return {"arm": "datasets.map", "rows": rows, **clock.steps}


def tokenizer_alone(path: Path, rows: int, tokenizer_folder: str) -> dict[str, Any]:
    """The tokenizer's own batch call, without anything around it."""
    from tokenizers import Tokenizer

    clock = Clock()
    tokenizer = Tokenizer.from_file(str(Path(tokenizer_folder) / "tokenizer.json"))
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()[:20_000]]
    texts = texts_of(*([row[name] for row in found] for name in ("instruction", "input", "output")))

    def work() -> None:
        for start in range(0, len(texts), 2048):
            tokenizer.encode_batch(texts[start : start + 2048])

    clock.step("encode", len(texts), work)
    return {"arm": "encode_batch", "rows": len(texts), **clock.steps}


ARMS = {"luthier": luthier, "datasets.map": datasets_map, "encode_batch": tokenizer_alone}


def main() -> None:
    """Measure, or (with --arm) be one measured process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="folder of text files that rows are made of")
    parser.add_argument("--tokenizer", help="folder of a tokenizer")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(ARMS[given.arm](given.file, given.rows[0], given.tokenizer)))
        return
    files = sorted(given.text.glob("*.txt"))
    words = [word for file in files for word in file.read_text("utf-8").split()]
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    found: dict[str, Any] = {"machine": machine, "results": earlier(given.out, given.rows)}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = given.tokenizer or str(Path(folder) / "tokenizer")
        if not given.tokenizer:
            make_tokenizer(files, Path(tokenizer))
        for count in given.rows:
            path = Path(folder) / f"{count}.jsonl"
            write_rows(path, count, words)
            for _ in range(given.repeats):
                for arm in ARMS:
                    found["results"].append(measured(arm, path, count, tokenizer))
                    print(json.dumps(found["results"][-1]), flush=True)
                    if given.out:
                        given.out.parent.mkdir(parents=True, exist_ok=True)
                        given.out.write_text(json.dumps(found, indent=1) + "\n")
            path.unlink()


def earlier(out: Path | None, counts: list[int]) -> list[dict[str, Any]]:
    """What `out` holds of other sizes, so that the sizes can be measured one by one."""
    if out is None or not out.is_file():
        return []
    known = json.loads(out.read_text("utf-8"))["results"]
    return [result for result in known if result["size"] not in counts]


def measured(arm: str, path: Path, count: int, tokenizer: str) -> dict[str, Any]:
    """One arm in a process of its own, with the load of the machine before it."""
    command = [sys.executable, __file__, "--tokenizer", tokenizer, "--rows", str(count), "--arm", arm]
    load = round(os.getloadavg()[0], 1)
    done = subprocess.run([*command, "--file", str(path)], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {"arm": arm, "failed": done.stderr[-300:]}
    return {"size": count, **found, "megabytes": round(path.stat().st_size / 1e6, 1), "load": load}


if __name__ == "__main__":
    main()
