"""Tuning methods on E2E (a restaurant's facts → a sentence) with a small base, at equal epochs.

    python benchmarks/bench_generation.py --data FOLDER/generate/e2e --runs FOLDER [--model FOLDER] [--out FILE.json]

Makes 480 training, 80 validation and 80 test rows (every n-th row of the files, one text for each test fact),
runs one recipe for each method through `luthier run`, and keeps what `luthier compare --json` prints. Finished run
directories are left alone, so that the same command continues.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from luthier.core import atomic, strict_yaml

SIZES = {"train": 480, "dev": 80, "test": 80}
EPOCHS = 3
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 8},
    "full": {"name": "full"},
    "bottleneck": {"name": "bottleneck", "reduction": 8},
    "mam": {"name": "stack", "preset": "mam", "length": 10, "reduction": 8},
    "prefix": {"name": "prefix", "length": 20},
    "prompt": {"name": "prompt", "length": 20},
    "p_tuning": {"name": "p_tuning", "length": 20},
}


def main() -> None:
    """Slice, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--model", default="builtin", help="builtin, or the folder of stories260K.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "generation.json")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    for name, count in SIZES.items():
        take(given.data / f"{name}.csv", given.runs / f"{name}.csv", count)
    for method in given.methods:
        recipe = given.runs / f"{method}.yaml"
        recipe.write_text(strict_yaml.dump(recipe_of(given.runs, given.model, METHODS[method])), "utf-8")
        done = luthier("run", str(recipe), "--run-dir", str(given.runs / method))
        if done.returncode not in (0, 1):  # 1: finished, and a health diagnosis failed
            sys.exit(done.stderr[-2000:])
    runs = [str(given.runs / method) for method in given.methods]
    found = json.loads(luthier("compare", "--json", *runs).stdout)
    head = {"model": Path(given.model).name, "sizes": SIZES, "epochs": EPOCHS, "specs": METHODS}
    atomic.write_json(given.out, {**head, "compare": found})


def luthier(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a user calls it."""
    return subprocess.run([sys.executable, "-m", "luthier.cli", *words], capture_output=True, text=True, check=False)


def recipe_of(folder: Path, model: str, method: dict[str, Any]) -> dict[str, Any]:
    """Equal in everything but the method; every method at its own default rate."""
    return {
        "model": {"path": model},
        "task": "instruct",
        "data": {
            "train": str(folder / "train.csv"),
            "validation": str(folder / "dev.csv"),
            "test": str(folder / "test.csv"),
            "columns": {"instruction": "mr", "output": "ref"},
            "max_length": 256,
        },
        "method": method,
        "train": {"epochs": EPOCHS, "batch_size": 8, "threads": 1, "early_stop": None, "save_every": "never"},
        "evaluate": {
            "metrics": ["loss", "bleu", "rougeL"],
            "generate_rows": SIZES["test"],
            "samples": {"count": 2, "max_new_tokens": 120, "temperature": 0},
        },
    }


def take(source: Path, target: Path, count: int) -> None:
    """Rows at even distances, each set of facts once."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = (
            list({row["mr"]: row for row in csv.DictReader(file)}.values())
            if count < SIZES["train"]
            else list(csv.DictReader(file))
        )
    step = max(1, len(rows) // count)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["mr", "ref"])
        writer.writeheader()
        writer.writerows(rows[::step][:count])


if __name__ == "__main__":
    main()
