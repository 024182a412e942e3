"""What each technique of the engine gains by itself, in time and in memory: the same batch with it and without it.

    python benchmarks/bench_ablation.py [--rounds 3] [--shape llama25m] [--only TECHNIQUE …] [--out FILE.json]

A technique is a pair of arms; each arm is a process with its own model. Rounds are interleaved, a round is one forward
and backward over the same rows, and the ratio is taken inside a round in CPU-seconds of the arm's own process. Memory
is the peak above what the process held before its first step. Finished techniques are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core import atomic

LORA = {"name": "lora", "r": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
TOP = {**LORA, "layers": [-2, -1]}
TECHNIQUES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "segments instead of padding": ({}, {"layout": "padded"}),
    "attention: queries in blocks over the keys that they see": ({}, {"whole": True}),
    "the same under a prefix of 20 keys": (
        {"method": {"name": "prefix", "length": 20}},
        {"method": {"name": "prefix", "length": 20}, "whole": True},
    ),
    "shared prefix of 128 tokens": ({"prefix": 128, "shared": True}, {"prefix": 128}),
    "frozen-trunk cache, over adapters in all layers": ({"method": TOP, "trunk": True}, {}),
    "loss of supervised tokens, in chunks, gradient in the forward": ({}, {"loss": "plain"}),
    "activation checkpointing": ({"checkpointing": True}, {}),
    "int8 frozen base": ({"int8": True}, {}),
    "no backward below the lowest adapter (top 2 layers)": ({"method": TOP}, {}),
    "frozen-trunk cache (top 2 layers, later epochs)": ({"method": TOP, "trunk": True}, {"method": TOP}),
    "compiled layers": ({"compiled": True}, {}),
    "shared prefix of 32 tokens": ({"prefix": 32, "shared": True}, {"prefix": 32}),
    "prefix tuning: keys and values in the segment attention": (
        {"method": {"name": "prefix", "length": 20}},
        {"method": {"name": "prefix", "length": 20}, "layout": "padded"},
    ),
    "one sequence of 2048 tokens, engine against padded layout and plain loss": (
        {"rows": "long"},
        {"rows": "long", "layout": "padded", "loss": "plain"},
    ),
}


def main() -> None:
    """Measure the techniques that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="llama25m")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablation.json")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--only", nargs="+", default=list(TECHNIQUES), choices=list(TECHNIQUES), metavar="TECHNIQUE")
    parser.add_argument("--most", type=int, default=len(TECHNIQUES), help="Techniques to measure now.")
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "SWITCHES"))
    given = parser.parse_args()
    if given.worker:
        worker(Path(given.worker[0]), json.loads(given.worker[1]))
        return
    kept = json.loads(given.out.read_text("utf-8"))["techniques"] if given.out.is_file() else {}
    with TemporaryDirectory() as scratch:
        from luthier.bench.control import machine
        from luthier.bench.work import prepare

        work = prepare(Path(scratch), given.shape, given.rows)
        facts = {key: work[key] for key in ("shape", "count", "tokens", "supervised")}
        for name in [name for name in given.only if name not in kept][: given.most]:
            kept[name] = measure(Path(scratch), TECHNIQUES[name], given.rounds)
            ordered = {each: kept[each] for each in TECHNIQUES if each in kept}
            atomic.write_json(given.out, {"work": facts, "machine": machine(), "techniques": ordered})


def measure(folder: Path, pair: tuple[dict[str, Any], dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Both arms of a technique, in turn."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    arms = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", str(folder), json.dumps(switches)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        for switches in pair
    ]  # fmt: skip
    found: list[list[dict[str, float]]] = [[], []]
    for turn in range(rounds + 1):
        for place in (turn % 2, 1 - turn % 2):
            stdin, stdout = arms[place].stdin, arms[place].stdout
            assert stdin is not None
            assert stdout is not None
            stdin.write("go\n")
            stdin.flush()
            found[place].append(json.loads(stdout.readline()))
    for arm in arms:
        arm.communicate()
    ratios = [without["cpu_s"] / having["cpu_s"] for having, without in zip(*found, strict=True)][1:]
    low, high = min(ratios), max(ratios)
    return {
        "speed": {"median": round(statistics.median(ratios), 3), "range": [round(low, 3), round(high, 3)]},
        "peak_mb": [round(arm[-1]["peak_mb"]) for arm in found],
        "loss": [round(arm[-1]["loss"], 6) for arm in found],
    }


def worker(folder: Path, switches: dict[str, Any]) -> None:
    """One arm: a step for every line on stdin. The first one pays for allocations (and fills the trunk cache)."""
    import torch

    from luthier.engine import attention
    from luthier.models import trunk

    torch.set_num_threads(1)
    attention.BLOCK = sys.maxsize if switches.get("whole") else attention.BLOCK
    adapted, rows = build(folder, switches)
    batch = batch_of(rows)
    if switches.get("trunk"):
        assert trunk.install(adapted, rows, folder / f"trunk-{os.getpid()}.bin")
    adapted.train()
    before = peak_mb()
    for _ in sys.stdin:
        began = time.process_time()
        loss = plain_loss(adapted, batch) if switches.get("loss") == "plain" else adapted.loss(batch).total
        loss.backward()
        spent = time.process_time() - began
        for weight in adapted.parameters_by_name().values():
            weight.grad = None
        answer = {"cpu_s": spent, "peak_mb": peak_mb() - before, "loss": float(loss.detach()) / batch.supervised}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def build(folder: Path, switches: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The adapted model and its rows."""
    import numpy as np

    from luthier.adapted import AdaptedModel
    from luthier.bench.work import base_of
    from luthier.core.types import Row
    from luthier.methods import METHODS
    from luthier.models import int8
    from luthier.tasks import TASKS

    base = base_of(folder / "model")
    base.tokenizer = Words(base.model.config.vocab_size)
    method = switches.get("method", LORA)
    attached = METHODS.parse(method).attach(base, 0)
    layout = switches.get("layout", "flat")
    adapted = AdaptedModel(base, attached, None, TASKS.parse("instruct"), method, layout=layout)
    adapted.loss_options = {"checkpointing": True} if switches.get("checkpointing") else {}
    base.shared_prefix = bool(switches.get("shared"))
    if switches.get("compiled"):
        from luthier.models import compiled

        compiled.install(base)
    source = np.random.default_rng(1)
    common = source.integers(3, 1000, switches.get("prefix", 0))
    raw = json.loads((folder / "rows.json").read_text("utf-8"))
    if switches.get("rows") == "long":
        ids = source.integers(3, 1000, 2048)
        raw, common = [{"input_ids": ids.tolist(), "labels": ids.tolist()}], common[:0]
    made = []
    for index, row in enumerate(raw):
        ids = np.concatenate([common, row["input_ids"]]).astype(np.int32)
        labels = np.concatenate([np.full(len(common), -100), row["labels"]]).astype(np.int32)
        made.append(Row(str(index), ids, labels))
    if switches.get("int8"):
        int8.install_checked(adapted, made[:3])
    return adapted, made


class Words(list[int]):
    """As much of a tokenizer as a prefix's start asks for."""

    all_special_ids = (0, 1, 2)

    def __init__(self, size: int):
        super().__init__(range(size))


def batch_of(rows: list[Any]) -> Any:
    """All rows in one batch."""
    from luthier.engine.batch import from_rows

    return from_rows(rows)


def plain_loss(adapted: Any, batch: Any) -> Any:
    """Logits of every token at once, torch's own cross entropy."""
    import torch

    from luthier.models import forward

    logits = forward.logits(adapted.base, adapted.hidden(batch))
    return torch.nn.functional.cross_entropy(logits, batch.targets, ignore_index=-100, reduction="sum")


def peak_mb() -> float:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    main()
