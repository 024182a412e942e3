"""The engine against Trainer and TRL on both shapes, pair by pair, continued where it stopped.

    python benchmarks/bench_engine.py --trl PYTHON [--minutes 10] [--rounds 2] [--out FILE.json] [--tables]

PYTHON is the interpreter of an environment with TRL. A pair is luthier and one peer in one `luthier bench` (epochs
in turn, in processes of their own); ratios are taken inside a pair, so that what else the machine does weighs
on both. Every pair is written when it is done. `--shapes` and `--arms` choose; the fewest rounds go first. `--together`
runs all arms of a shape in one bench, which trains luthier's epochs once for all of them. A table is made of pairs of
one shape and one number of rows: epochs of other rows are other work. `--tables` only makes them anew.

Without padding: TRL's arms that sort or group by length still pad here, where few rows are sorted; over a large data
set hardly anything is left of it. Their ratio divided by their positions a token is what would then be seen, and the
goal "TRL at its best" takes the smallest of those and of packing's ratio.
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
EPOCHS = {"llama25m": 2, "opt125m": 2, "tiny": 2}
ARMS = (
    "trl_single",
    "trl_packing",
    "trl_sorted",
    "documents",
    "luthier_int8",
    "trl",
    "trl_grouped",
    "trl_padding_free",
    "transformers",
    "luthier_padded",
)
SORTING = ("trl_sorted", "trl_grouped")
KEPT = ("tokens_per_cpu_s", "mfu", "peak_rss_mb", "loss", "positions_per_token")
GOALS = {
    "llama25m": {"luthier/trl_best": 2.0, "luthier/documents": 7.0, "mfu": 0.70},
    "opt125m": {"luthier/trl_best": 2.0, "luthier/documents": 5.0, "mfu": 0.85, "luthier_int8/luthier": 1.4},
}


def main() -> None:
    """Pairs until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl")
    parser.add_argument("--tables", action="store_true", help="Measure nothing.")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2, help="Pairs of every peer and shape.")
    parser.add_argument("--shapes", nargs="+", default=["llama25m", "opt125m"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine.json")
    given = parser.parse_args()
    pairs = json.loads(given.out.read_text("utf-8"))["pairs"] if given.out.is_file() else []
    if given.tables:
        atomic.write_json(given.out, {"tables": tables(pairs), "pairs": pairs})
        return
    until = time.monotonic() + 60 * given.minutes
    while time.monotonic() < until and (todo := missing(pairs, given.shapes, given.arms, given.rounds)):
        shape = todo[0][0]
        arms = [arm for other, arm in todo if other == shape][: None if given.together else 1]
        sys.stderr.write(f"{shape} {' '.join(arms)}\n")
        began = time.monotonic()
        found = control.bench(arms, shape=shape, rows=ROWS[shape], rounds=EPOCHS[shape], trl=given.trl, say=tell)
        facts = {"shape": shape, "minutes": round((time.monotonic() - began) / 60, 1), **found}
        pairs += [pair_of(facts, arm) for arm in arms]
        atomic.write_json(given.out, {"tables": tables(pairs), "pairs": pairs})


def pair_of(found: dict[str, Any], peer: str) -> dict[str, Any]:
    """Luthier and one peer of a bench of several."""
    return {
        **found,
        "peer": peer,
        "arms": [arm for arm in found["arms"] if arm["name"] in ("luthier", peer)],
        "ratios": {name: ratio for name, ratio in found["ratios"].items() if name == f"luthier/{peer}"},
        "dropped": [arm for arm in found["dropped"] if arm["name"] == peer],
    }


def tell(words: str) -> None:
    """To stderr."""
    sys.stderr.write(f"{words}\n")


def missing(pairs: list[dict[str, Any]], shapes: list[str], arms: list[str], rounds: int) -> list[tuple[str, str]]:
    """Pairs still to be measured on this many rows, the least measured first. A pair whose peer was dropped counts."""
    counts = {
        (shape, arm): sum(
            pair["shape"] == shape and pair["peer"] == arm and pair["work"]["count"] == ROWS[shape] for pair in pairs
        )
        for arm in arms
        for shape in shapes
    }
    order = sorted(counts, key=counts.__getitem__)
    return [pair for pair in order if counts[pair] < rounds]


def tables(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """One a shape and number of rows, in the order of their first pairs: {"llama25m, 32 rows": …}."""
    kinds = dict.fromkeys((pair["shape"], pair["work"]["count"]) for pair in pairs)
    return {f"{shape}, {rows} rows": table(pairs, shape, rows) for shape, rows in kinds}


def table(pairs: list[dict[str, Any]], shape: str, rows: int) -> dict[str, Any]:
    """Per arm the medians over all pairs, ratios with their ranges, and the goals beside them."""
    here = [pair for pair in pairs if (pair["shape"], pair["work"]["count"]) == (shape, rows)]
    if not here:
        return {}
    arms: dict[str, dict[str, list[float]]] = {}
    for pair in here:
        for arm in pair["arms"]:
            kept = arms.setdefault(arm["name"], {key: [] for key in KEPT})
            positions = arm["computed_positions"] / pair["work"]["tokens"]
            for key, values in kept.items():
                value = positions if key == "positions_per_token" else arm[key]
                values += [] if value is None else [value]
    medians = {
        name: {key: round(statistics.median(values), 4) if values else None for key, values in kept.items()}
        for name, kept in arms.items()
    }
    ratios = {
        f"luthier/{name}": merged([pair for pair in here if pair["peer"] == name], name)
        for name in dict.fromkeys(pair["peer"] for pair in here)
        if name in medians
    }
    for name in SORTING:
        if f"luthier/{name}" in ratios:
            one = ratios[f"luthier/{name}"]
            one["without_padding"] = round(one["median"] / medians[name]["positions_per_token"], 3)
    goals = {
        name: {"goal": goal, "measured": measured(name, ratios, medians)} for name, goal in GOALS.get(shape, {}).items()
    }
    return {"arms": medians, "ratios": ratios, "goals": goals, "work": here[0]["work"], "pairs": len(here)}


def merged(pairs: list[dict[str, Any]], peer: str) -> dict[str, Any]:
    """Median and range over the pairs of one peer; clear where two epochs or more leave 1 out."""
    edges = [pair["ratios"][f"luthier/{peer}"] for pair in pairs if f"luthier/{peer}" in pair["ratios"]]
    low, high = min(edge["range"][0] for edge in edges), max(edge["range"][1] for edge in edges)
    middle = statistics.median(edge["median"] for edge in edges)
    epochs = sum(pair.get("rounds", 1) for pair in pairs)
    clear = epochs > 1 and (low > 1 or high < 1)
    return {"median": round(middle, 3), "range": [low, high], "clear": clear, "epochs": epochs}


def measured(goal: str, ratios: dict[str, Any], arms: dict[str, Any]) -> float | None:
    """What stands beside a goal, None where it was not measured; TRL at its best also notes which arm that is."""
    if goal == "mfu":
        return float(arms["luthier"]["mfu"])
    if goal == "luthier/trl_best":
        rivals = {
            name: ratio.get("without_padding", ratio["median"])
            for name, ratio in ratios.items()
            if name.removeprefix("luthier/") in control.TRL
        }
        if not rivals:
            return None
        best = min(rivals, key=rivals.__getitem__)
        ratios["luthier/trl_best"] = {**ratios[best], "arm": best.removeprefix("luthier/"), "counted": rivals[best]}
        return float(rivals[best])
    top, _, bottom = goal.partition("/")
    if goal in ratios:
        return float(ratios[goal]["median"])
    turned = ratios.get(f"{bottom}/{top}")
    return None if turned is None else round(1 / turned["median"], 3)


if __name__ == "__main__":
    main()
