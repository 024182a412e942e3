"""What one sequence of 4096 tokens takes: peak memory of luthier's step and of a plain Hugging Face + PEFT step.

    python benchmarks/bench_sequence.py [--shapes llama25m opt125m] [--tokens 4096] [--out FILE.json]

Each arm is a process of its own: it loads the base and the LoRA (r = 8 on the query and value projections), takes two
AdamW steps on the same row (78 % of its tokens trained) and tells its peak resident memory, with the libraries, and how
much of it came after loading. `plain` is `model(input_ids, labels=…)`, backward and step, imported from nothing of
luthier; `luthier` is the product's default, `luthier_checkpointing` with `train.activation_checkpointing`. Shapes are
those of the bench with as many positions as tokens. Finished arms are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ARMS = ("plain", "luthier", "luthier_checkpointing")
GOAL = 0.5


def main() -> None:
    """Measure the arms that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["llama25m", "opt125m"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sequence.json")
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "ARM"))
    given = parser.parse_args()
    if given.worker:
        worker(Path(given.worker[0]), given.worker[1])
        return
    from luthier.bench.figures import machine
    from luthier.core import atomic

    kept = json.loads(given.out.read_text("utf-8"))["shapes"] if given.out.is_file() else {}
    for shape in given.shapes:
        arms = kept.setdefault(shape, {}).get("arms", {})
        with TemporaryDirectory() as scratch:
            for arm in [arm for arm in ARMS if arm not in arms]:
                if not (Path(scratch) / "work.json").is_file():
                    make(Path(scratch), shape, given.tokens)
                arms[arm] = measure(Path(scratch), arm)
                kept[shape] = compared(arms)
                head = {"tokens": given.tokens, "goal": GOAL, "machine": machine()}
                atomic.write_json(given.out, {**head, "shapes": kept})


def make(folder: Path, shape: str, tokens: int) -> None:
    """The bench's work with a single long row. In a process of its own nothing of it counts."""
    from luthier.bench.shapes import SHAPES
    from luthier.bench.work import UNTRAINED, make_rows, prepare

    kind, options = SHAPES[shape]
    SHAPES["long"] = (kind, {**options, "max_position_embeddings": tokens})
    prepare(folder, "long", 2)
    ids = [token for row in make_rows(tokens // 16, options["vocab_size"]) for token in row["input_ids"]][:tokens]
    assert len(ids) == tokens
    prompt = int(tokens * UNTRAINED)
    row = {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
    (folder / "rows.json").write_text(json.dumps([row]), "utf-8")
    work = json.loads((folder / "work.json").read_text("utf-8"))
    (folder / "work.json").write_text(json.dumps({**work, "checked": [0], "longest": tokens}), "utf-8")


def measure(folder: Path, arm: str) -> dict[str, Any]:
    """One process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--worker", str(folder), arm]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(arms: dict[str, Any]) -> dict[str, Any]:
    """Shares of what the plain step takes; losses must be the same training."""
    plain = arms.get("plain")
    found: dict[str, Any] = {"arms": arms, "share": {}, "same_loss": True}
    for name, arm in arms.items():
        if plain and name != "plain":
            found["share"][name] = round(arm["peak_mb"] / plain["peak_mb"], 3)
            near = all(abs(a - b) < 1e-4 * abs(b) for a, b in zip(arm["losses"], plain["losses"], strict=True))
            found["same_loss"] = found["same_loss"] and near
    return found


def worker(folder: Path, arm: str) -> None:
    """Two steps; one JSON line."""
    import torch

    torch.set_num_threads(1)
    step, weights = plain_step(folder) if arm == "plain" else own_step(folder, arm)
    loaded = peak_mb()
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    losses, began = [], time.process_time()
    for _ in range(2):
        loss = step()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    spent = (time.process_time() - began) / 2
    answer = {"peak_mb": round(peak_mb()), "loaded_mb": round(loaded), "losses": losses, "cpu_s": round(spent, 2)}
    sys.stdout.write(json.dumps(answer) + "\n")


def plain_step(folder: Path) -> tuple[Any, list[Any]]:
    """Hugging Face's model and loss, PEFT's layers."""
    import torch

    from luthier.bench.peers.peer import peer_of  # imports nothing of luthier

    peer = peer_of(folder, "transformers")
    model, row = peer.model.train(), peer.rows[0]
    ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return lambda: model(input_ids=ids, labels=labels).loss, weights


def own_step(folder: Path, arm: str) -> tuple[Any, list[Any]]:
    """The product's forward and loss, as its loop calls them."""
    from luthier.bench.arms import KINDS
    from luthier.bench.worker import Bench
    from luthier.engine.batch import from_rows

    bench = Bench(folder, dict(KINDS[arm].switches))
    bench.adapted.train()
    batch = from_rows(bench.rows)

    def step() -> Any:
        made = bench.loss(batch)
        return made.total / made.count

    return step, list(bench.adapted.parameters_by_name().values())


def peak_mb() -> float:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    main()
