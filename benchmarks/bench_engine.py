"""The engine against Trainer and TRL on both shapes, pair by pair, continued where it stopped.

    python benchmarks/bench_engine.py --trl PYTHON [--minutes 10] [--rounds 2] [--out FILE.json]

PYTHON is the interpreter of an environment with TRL. A pair is one `luthier bench` of luthier and one peer (epochs
in turn, in processes of their own); ratios are taken inside a pair, so that what else the machine does weighs
on both. Every pair is written when it is done. `--shapes` and `--arms` choose; the fewest rounds go first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from luthier.bench import control
from luthier.core import atomic

ROWS = {"llama25m": 32, "opt125m": 32, "tiny": 32}
EPOCHS = {"llama25m": 2, "opt125m": 1, "tiny": 2}
ARMS = ("trl_packing", "trl_sorted", "documents", "luthier_int8", "trl", "transformers", "luthier_padded")
KEPT = ("tokens_per_cpu_s", "mfu", "peak_rss_mb", "loss", "positions_per_token")
GOALS = {
    "llama25m": {"luthier/trl_best": 2.0, "luthier/documents": 7.0, "mfu": 0.70},
    "opt125m": {"luthier/trl_best": 2.0, "luthier/documents": 5.0, "mfu": 0.85, "luthier/luthier_int8": 1 / 1.4},
}


def main() -> None:
    """Pairs until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2, help="Pairs of every peer and shape.")
    parser.add_argument("--shapes", nargs="+", default=["llama25m", "opt125m"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine.json")
    given = parser.parse_args()
    pairs = json.loads(given.out.read_text("utf-8"))["pairs"] if given.out.is_file() else []
    until = time.monotonic() + 60 * given.minutes
    while time.monotonic() < until and (todo := missing(pairs, given.shapes, given.arms, given.rounds)):
        shape, arm = todo[0]
        sys.stderr.write(f"{shape} {arm}\n")
        began = time.monotonic()
        found = control.bench([arm], shape=shape, rows=ROWS[shape], rounds=EPOCHS[shape], trl=given.trl, say=tell)
        pairs.append({"shape": shape, "peer": arm, "minutes": round((time.monotonic() - began) / 60, 1), **found})
        atomic.write_json(given.out, {"tables": {name: table(pairs, name) for name in given.shapes}, "pairs": pairs})


def tell(words: str) -> None:
    """To stderr."""
    sys.stderr.write(f"{words}\n")


def missing(pairs: list[dict[str, Any]], shapes: list[str], arms: list[str], rounds: int) -> list[tuple[str, str]]:
    """Pairs still to be measured, the least measured first."""
    counts = {
        (shape, arm): sum(pair["shape"] == shape and pair["peer"] == arm for pair in pairs)
        for arm in arms
        for shape in shapes
    }
    order = sorted(counts, key=counts.__getitem__)
    return [pair for pair in order if counts[pair] < rounds]


def table(pairs: list[dict[str, Any]], shape: str) -> dict[str, Any]:
    """Per arm the medians over all pairs, ratios with their ranges, and the goals beside them."""
    here = [pair for pair in pairs if pair["shape"] == shape]
    if not here:
        return {}
    arms: dict[str, dict[str, list[float]]] = {}
    for pair in here:
        for arm in pair["arms"]:
            kept = arms.setdefault(arm["name"], {key: [] for key in KEPT})
            positions = arm["computed_positions"] / pair["work"]["tokens"]
            for key, values in kept.items():
                values.append(positions if key == "positions_per_token" else arm[key])
    ratios: dict[str, Any] = {}
    for name in dict.fromkeys(pair["peer"] for pair in here):
        edges = [pair["ratios"][f"luthier/{name}"] for pair in here if pair["peer"] == name]
        low, high = min(edge["range"][0] for edge in edges), max(edge["range"][1] for edge in edges)
        middle = statistics.median(edge["median"] for edge in edges)
        ratios[f"luthier/{name}"] = {"median": round(middle, 3), "range": [low, high], "clear": low > 1 or high < 1}
    rivals = [name for name in ratios if name.removeprefix("luthier/") in control.TRL]
    if rivals:
        best = min(rivals, key=lambda name: ratios[name]["median"])
        ratios["luthier/trl_best"] = {**ratios[best], "arm": best.removeprefix("luthier/")}
    rows = {
        name: {key: round(statistics.median(values), 4) for key, values in kept.items()} for name, kept in arms.items()
    }
    measured = {**{name: ratio["median"] for name, ratio in ratios.items()}, "mfu": rows["luthier"]["mfu"]}
    goals = {name: {"goal": goal, "measured": measured.get(name)} for name, goal in GOALS.get(shape, {}).items()}
    return {"arms": rows, "ratios": ratios, "goals": goals, "work": here[0]["work"]}


if __name__ == "__main__":
    main()
