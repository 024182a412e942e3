"""One arm of luthier's own, in a process of its own: reads one JSON order a line, answers one JSON line.

{"do": "prepare", "shape": …, "rows": …}   writes the work
{"do": "gemm"}                             GFLOP/s of a float32 product of this model's size, one thread
{"do": "go", "save": folder}               one whole epoch from the start adapter
{"do": "judge", "adapter": folder}         mean loss of the rows, one by one, padded, float32
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

ARMS: dict[str, dict[str, Any]] = {
    "luthier": {"layout": "flat"},
    "luthier_padded": {"layout": "padded"},
    "luthier_checkpointing": {"layout": "flat", "checkpointing": True},
    "luthier_int8": {"layout": "flat", "int8": True},
    "luthier_compiled": {"layout": "flat", "compiled": True},
}
"""Switches of each arm."""


class Bench:
    """The model of one arm, with its adapter."""

    def __init__(self, folder: Path, switches: dict[str, Any]):
        import numpy as np

        from luthier.adapted import AdaptedModel
        from luthier.bench.work import LORA, base_of
        from luthier.core.types import Row
        from luthier.methods import METHODS
        from luthier.tasks import TASKS

        self.work = json.loads((folder / "work.json").read_text("utf-8"))
        base = base_of(folder / "model")
        attached = METHODS.get("lora").reload(folder / "start", base, True)
        self.adapted = AdaptedModel(base, attached, None, TASKS.parse("instruct"), dict(LORA))
        self.adapted.layout = switches.get("layout", "padded")
        if switches.get("checkpointing"):
            self.adapted.loss_options = {"checkpointing": True}
        if switches.get("int8"):
            from luthier.models import int8

            int8.install(base)
        if switches.get("compiled"):
            from luthier.models import compiled

            compiled.install(base)
        self.start = self.adapted.state()
        raw = json.loads(Path(self.work["rows"]).read_text("utf-8"))
        self.rows = [
            Row(str(index), np.array(row["input_ids"], dtype=np.int32), np.array(row["labels"], dtype=np.int32))
            for index, row in enumerate(raw)
        ]
        self.slots = 0
        base.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module: Any, given: tuple[Any, ...]) -> None:
        self.slots += given[0].numel()

    def epoch(self, save: str) -> dict[str, Any]:
        """Train one epoch in the product's own loop."""
        from luthier.data.batching import BatchPlan
        from luthier.train import loop
        from luthier.train.settings import ScheduleSettings, TrainSettings

        self.adapted.load_state(self.start)
        plan = BatchPlan(self.rows, batch_size=self.work["rows_per_step"], shuffle=False)
        settings = TrainSettings(
            epochs=1,
            batch_size=self.work["rows_per_step"],
            weight_decay=0.0,
            clip_norm=self.work["clip_norm"],
            schedule=ScheduleSettings(name="constant", warmup=0),
            save_every="never",
            evaluate_every="never",
            early_stop=None,
        )
        self.slots = 0
        cpu, wall = time.process_time(), time.perf_counter()
        loop.fit(
            self.adapted,
            plan,
            self.adapted.loss,
            settings=settings,
            lr=self.work["lr"],
            total_steps=plan.steps(0),
        )
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        self.adapted.attached.save(Path(save))
        return {"cpu_s": cpu, "wall_s": wall, "slots": self.slots, "peak_rss_mb": peak_mb()}

    def judge(self, adapter: str) -> dict[str, Any]:
        """Mean loss over the supervised tokens of the first rows with this adapter, row by row."""
        import torch
        from safetensors.torch import load_file

        from luthier.engine.batch import from_rows

        attached: Any = self.adapted.attached
        tensors = load_file(Path(adapter) / "adapter_model.safetensors")
        attached.load_tensors({key: value.float() for key, value in tensors.items()}, adapter)
        self.adapted.layout = "padded"
        self.adapted.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for row in self.rows[: self.work["rows_per_step"]]:
                batch = from_rows([row])
                total += float(self.adapted.token_nll(batch).double().sum())
                count += batch.supervised
        return {"loss": total / count}


def gemm(folder: Path) -> dict[str, float]:
    """GFLOP a CPU-second of the product that this model has most of, the best of several."""
    import torch

    config = json.loads((folder / "model" / "config.json").read_text("utf-8"))
    narrow = config["hidden_size"]
    wide = config.get("intermediate_size") or config["ffn_dim"]
    states, weight = torch.randn(2048, narrow), torch.randn(wide, narrow)
    out = torch.empty(2048, wide)
    best = 0.0
    for _ in range(6):
        began, times = time.process_time(), 0
        while time.process_time() - began < 0.15:
            torch.mm(states, weight.t(), out=out)
            times += 1
        best = max(best, 2 * 2048 * narrow * wide * times / (time.process_time() - began) / 1e9)
    return {"gemm_gflops": best}


def peak_mb() -> float:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def main(folder: Path, arm: str, threads: int) -> None:
    """Answer orders until stdin ends."""
    import torch

    torch.set_num_threads(threads)
    bench: Bench | None = None
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "prepare":
            from luthier.bench.work import prepare

            answer: dict[str, Any] = prepare(folder, order["shape"], order["rows"])
        elif order["do"] == "gemm":
            answer = gemm(folder)
        else:
            bench = bench or Bench(folder, ARMS.get(arm, {}))
            answer = bench.judge(order["adapter"]) if order["do"] == "judge" else bench.epoch(order["save"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
