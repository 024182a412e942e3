"""How long until the first step? `luthier run` to its first optimizer step against importing torch + loading the model.

    python benchmarks/bench_startup.py [--pairs 5] [--out FILE.json]

Both are processes of their own on the built-in base and built-in rows, one thread, CPU-seconds from the start of the
interpreter; a pair is one of each, right after the other, in turns. The ratio is taken inside a pair. Finished pairs
are kept, so that the same command continues. Goal: at most 1.3.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

GOAL = 1.3
RECIPE = """
data: {train: "builtin:instruct", max_rows: 200}
train: {steps: 2, threads: 1, early_stop: null, evaluate_every: never, save_every: never}
evaluate: {samples: {count: 0}, generate_rows: 0, bootstrap: 100}
"""


def main() -> None:
    """Measure the pairs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    parser.add_argument("--worker", choices=("run", "bare"))
    given = parser.parse_args()
    if given.worker:
        sys.stdout.write(f"{first_step() if given.worker == 'run' else bare()}\n")
        sys.stdout.flush()
        os._exit(0)  # what comes after the first step is not measured
    from luthier.bench.figures import machine
    from luthier.core import atomic

    pairs = json.loads(given.out.read_text("utf-8"))["pairs"] if given.out.is_file() else []
    while len(pairs) < given.pairs:
        order = ("run", "bare") if len(pairs) % 2 else ("bare", "run")
        pairs.append({name: ask(name) for name in order})
        atomic.write_json(given.out, {**summary(pairs), "pairs": pairs, "machine": machine()})


def ask(what: str) -> float:
    """CPU-seconds of one process up to the point that counts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--worker", what], capture_output=True, text=True, env=environment
    )  # fmt: skip
    if done.returncode or not done.stdout.strip():
        raise SystemExit(done.stderr[-2000:])
    return round(float(done.stdout.splitlines()[-1]), 3)


def summary(pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Median and range of the ratios, each taken inside its pair."""
    each = [pair["run"] / pair["bare"] for pair in pairs]
    ratio = {"median": round(statistics.median(each), 3), "range": [round(min(each), 3), round(max(each), 3)]}
    return {"goal": GOAL, "ratio": ratio}


def bare() -> float:
    """Importing torch and loading the built-in base as Transformers does."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    found = find_spec("luthier")  # looks for the folder; the package is not imported
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent
    AutoModelForCausalLM.from_pretrained(folder / "models" / "builtin" / "weights", local_files_only=True)
    return time.process_time()


class Stepped(BaseException):
    """The first step is done."""


def first_step() -> float:
    """What `luthier run` does, up to the first optimizer step."""
    from luthier.pipeline import story
    from luthier.recipe import Recipe

    reached: list[float] = []

    def listen(record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            reached.append(time.process_time())
            raise Stepped

    with TemporaryDirectory() as scratch:
        try:
            story.run(Recipe.parse(RECIPE), Path(scratch) / "run", [listen])
        except Stepped:
            return reached[0]
    raise SystemExit("no step was made")


if __name__ == "__main__":
    main()
