"""The engine against other people's whole loops, a peer at a time: each at its default and at its best.

    python benchmarks/bench_peers.py --python litgpt=PATH --python torchtune=PATH … [--shapes llama25m] [--arms …]

One group is one `luthier bench` of luthier and the usual arms of one peer: epochs in turn, ratios inside a round. Every
group is written when it is done, and one that is there already (same shape, peer, rows) is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from luthier.bench import control
from luthier.bench.arms import KINDS, USUAL
from luthier.bench.shapes import SHAPES
from luthier.core import atomic

OUT = Path(__file__).parent / "results" / "peers.json"


def main() -> None:
    """Groups until all are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH")
    parser.add_argument("--shapes", nargs="+", default=["llama25m"])
    parser.add_argument("--arms", nargs="+", default=[], help="Of each peer, instead of its usual ones.")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    pythons = control.interpreters(given.python)
    groups = json.loads(given.out.read_text("utf-8"))["groups"] if given.out.is_file() else []
    for shape in given.shapes:
        for peer in pythons:
            names = [name for name in given.arms if KINDS[name].peer == peer] or usual(peer, shape)
            if not names or seen(groups, shape, peer, given.rows):
                continue
            began = time.monotonic()
            found = control.bench(
                names,
                shape=shape,
                rows=given.rows,
                rounds=given.rounds,
                pythons=[f"{peer}={pythons[peer]}"],
                say=tell,
            )
            minutes = round((time.monotonic() - began) / 60, 1)
            groups.append({"shape": shape, "peer": peer, "minutes": minutes, **found})
            atomic.write_json(given.out, {"groups": groups})


def usual(peer: str, shape: str) -> list[str]:
    """The peer's arms that this shape's architecture and a CPU are for."""
    fits = ("", SHAPES[shape][0])
    return [name for name in USUAL[peer] if KINDS[name].architecture in fits and KINDS[name].device in ("", "cpu")]


def seen(groups: list[dict[str, Any]], shape: str, peer: str, rows: int) -> bool:
    """Whether this group was measured."""
    return any((one["shape"], one["peer"], one["work"]["count"]) == (shape, peer, rows) for one in groups)


def tell(words: str) -> None:
    """To stderr."""
    sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    main()
