"""Rows a second and peak memory of reading, splitting, encoding and inspecting, against `datasets.map`.

    python benchmarks/bench_data.py TOKENIZER_FOLDER --rows 10000 100000 1000000

Each size is written as JSON Lines of generated rows (about 600 bytes, 100 words), then measured in processes of
their own, luthier and `datasets` one after the other on the same file. One JSON object a line is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYLLABLES = ["ka", "lo", "mi", "ter", "san", "du", "vel", "or", "in", "gra", "bes", "hu", "pon", "ric", "ta", "ne"]


def write_rows(path: Path, count: int) -> None:
    """Rows of invented words, seeded: no two alike."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(20_000)]
    with open(path, "w", encoding="utf-8") as handle:
        for number in range(count):
            row = {
                "instruction": " ".join(rng.choices(words, k=rng.randint(15, 35))) + "?",
                "input": " ".join(rng.choices(words, k=20)) if number % 2 else "",
                "output": " ".join(rng.choices(words, k=40)),
            }
            handle.write(json.dumps(row) + "\n")


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
    """load → split → encode → inspect, as every run does it."""
    clock = Clock()
    from luthier.data import load, split
    from luthier.data.settings import DataSettings

    settings = DataSettings(train=str(path), cache=False)
    loaded = clock.step("read", rows, lambda: load.load(settings, "instruct"))
    splits = clock.step("split", rows, lambda: split.split(loaded, settings.split, "instruct"))
    from transformers import AutoTokenizer

    from luthier.data import encode, inspect, templates

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    template = templates.choose("alpaca", tokenizer, "instruct")
    sides = ("train", "validation", "test")

    def encoded() -> dict[str, Any]:
        stop = int(tokenizer.eos_token_id)
        return {
            name: encode.encode(
                getattr(splits, name), template, tokenizer, settings, "instruct", labels=None, stop_id=stop
            )
            for name in sides
        }

    made = clock.step("encode", rows, encoded)
    found = clock.step("inspect", rows, lambda: inspect.inspect(loaded, splits, made, tokenizer, template, settings))
    return {"arm": "luthier", "rows": rows, "problems": len(found.problems), **clock.steps}


def datasets_map(path: Path, rows: int, tokenizer_folder: str) -> dict[str, Any]:
    """load_dataset → map with the same tokenizer on the same text."""
    clock = Clock()
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with tempfile.TemporaryDirectory() as cache:
        data = clock.step(
            "read",
            rows,
            lambda: datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache),
        )

        def tokens(batch: dict[str, list[str]]) -> dict[str, Any]:
            texts = [
                f"### Instruction:\n{ask}\n\n### Input:\n{more}\n\n### Response:\n{answer}"
                for ask, more, answer in zip(batch["instruction"], batch["input"], batch["output"], strict=True)
            ]
            return {"input_ids": tokenizer(texts, truncation=True, max_length=512)["input_ids"]}

        clock.step("encode", rows, lambda: data.map(tokens, batched=True, remove_columns=data.column_names))
    return {"arm": "datasets.map", "rows": rows, **clock.steps}


ARMS = {"luthier": luthier, "datasets.map": datasets_map}


def main() -> None:
    """Measure, or (with --arm) be one measured process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="folder of a tokenizer")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--file")
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(ARMS[given.arm](Path(given.file), given.rows[0], given.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in given.rows:
            path = Path(folder) / f"{count}.jsonl"
            write_rows(path, count)
            for arm in ARMS:
                command = [sys.executable, __file__, given.tokenizer, "--rows", str(count), "--arm", arm]
                done = subprocess.run([*command, "--file", str(path)], capture_output=True, text=True, check=False)
                print(done.stdout.strip() or json.dumps({"arm": arm, "rows": count, "failed": done.stderr[-300:]}))
                sys.stdout.flush()
            path.unlink()


if __name__ == "__main__":
    main()
