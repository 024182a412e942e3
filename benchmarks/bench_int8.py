"""Does an int8 base cost quality? The same recipe with and without `train.int8_base`, judged row by row on test rows.

    python benchmarks/bench_int8.py --data FILE [--base FOLDER] [--seeds 0 1 2] [--steps 150] [--out FILE.json]

Both runs of a pair see the same rows in the same order from the same start; both are evaluated with the exact float32
base. Reported: the paired difference of the test loss (int8 − exact, nats a token) with its bootstrap interval, beside
what the training itself gained, and the gradient's cosine at the start. Every pair is written when it is done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core import atomic
from luthier.core.events import read_jsonl
from luthier.core.rundir import RunDir
from luthier.evaluate import compare
from luthier.pipeline import story
from luthier.recipe import Recipe

RECIPE = """
data: {max_length: 256, max_rows: 1000, on_error: skip}
method: {name: lora, r: 8, dropout: 0.0}
train: {batch_tokens: 2048, early_stop: null, evaluate_every: never, save_every: never, threads: 1}
evaluate: {samples: {count: 0}, generate_rows: 0, bootstrap: 1000}
"""


def main() -> None:
    """Pairs of runs, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", default="builtin")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8.json")
    given = parser.parse_args()
    pairs = json.loads(given.out.read_text("utf-8"))["pairs"] if given.out.is_file() else []
    done = {(pair["base"], pair["data"], pair["seed"]) for pair in pairs}
    for seed in given.seeds:
        about = (Path(given.base).name, Path(given.data).name, seed)
        if about not in done:
            settings = (f"model.path={given.base}", f"data.train={given.data}", f"seed={seed}")
            found = pair_of(Recipe.parse(RECIPE, *settings, f"train.steps={given.steps}"))
            pairs.append({**dict(zip(("base", "data", "seed"), about, strict=True)), "steps": given.steps, **found})
            atomic.write_json(given.out, {"pairs": pairs})


def pair_of(recipe: Recipe) -> dict[str, Any]:
    """Both runs of one seed."""
    with TemporaryDirectory() as scratch:
        exact, lossy = Path(scratch) / "exact", Path(scratch) / "int8"
        story.run(recipe, exact)
        story.run(Recipe.parse(recipe.dump(), "train.int8_base=true"), lossy)
        events = read_jsonl(lossy / "events.jsonl")
        compared = compare.against(RunDir.open(exact), RunDir.open(lossy))
        metrics = json.loads((exact / "evaluation" / "metrics.json").read_text("utf-8"))
    return {
        "rows": compared["rows"],
        "cosine": next(event["cosine"] for event in events if event["kind"] == "int8"),
        "base_loss": metrics["base"]["loss"],
        "exact_loss": metrics["tuned"]["loss"],
        "int8_minus_exact": compared["metrics"]["loss"],
    }


if __name__ == "__main__":
    main()
