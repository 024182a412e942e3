"""One arm of luthier's own, in a process of its own: reads one JSON order a line, answers one JSON line.

{"do": "prepare", "shape": …, "rows": …}   writes the work
{"do": "reference", "objectives": […]}     loss and gradients in high precision, one row at a time, on disk
{"do": "gemm"}                             GFLOP/s of a product of this model's size, one thread or the GPU
{"do": "check", "save": file}              loss and gradients of the checked rows, as this arm trains them
{"do": "compare", "found": …, "objective": …}   how far another arm's answer to `check` is from the reference
{"do": "warm"}                             not counted: one optimizer step, or the epoch that fills a trunk cache
{"do": "go", "save": folder}               one whole epoch from the start adapter
{"do": "judge", "adapter": folder}         mean loss of the rows, one by one, padded
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from luthier.bench.arms import KINDS
from luthier.bench.peers.orders import Answer, peaks, serve, versions

LIBRARIES = ("luthier", "torch", "transformers", "peft", "liger_kernel")


class Bench:
    """The model of one arm, with its adapter. `adapter` is "" or "-top"."""

    def __init__(self, folder: Path, switches: dict[str, Any]):
        import numpy as np

        from luthier.adapted import AdaptedModel
        from luthier.bench.work import LORA, base_of
        from luthier.core.types import Row
        from luthier.engine import attention
        from luthier.methods import METHODS
        from luthier.tasks import TASKS

        self.folder, self.switches = folder, switches
        self.work = json.loads((folder / "work.json").read_text("utf-8"))
        self.on_gpu = self.work["device"] != "cpu"
        self.ending = f"-{switches['adapter']}" if "adapter" in switches else ""
        base = base_of(folder / "model", self.work["device"])
        attached = METHODS.get("lora").reload(folder / f"start{self.ending}", base, True)
        self.adapted = AdaptedModel(base, attached, None, TASKS.parse("instruct"), dict(LORA))
        self.adapted.layout = switches.get("layout", "flat")
        self.adapted.loss_options = {"checkpointing": True} if switches.get("checkpointing") else {}
        base.shared_prefix = bool(switches.get("shared_prefix"))
        if "fused" in switches:
            attention.use_fused(switches["fused"])
        self.loss = self._plain_loss if switches.get("plain_loss") else self.adapted.loss
        self.start = self.adapted.state()
        raw = json.loads(Path(self.work["rows"]).read_text("utf-8"))
        self.rows = [
            Row(str(index), np.array(row["input_ids"], dtype=np.int32), np.array(row["labels"], dtype=np.int32))
            for index, row in enumerate(raw)
        ]
        self.checked = [self.rows[index] for index in self.work["checked"]]
        self.slots = 0
        self.refused: str | None = None
        base.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module: Any, given: tuple[Any, ...]) -> None:
        self.slots += given[0].numel()

    def install(self) -> Bench:
        """Eight bits, compiled layers, the trunk cache: through the product's own checks, which may refuse.

        As in a run they are made at the start adapter; `check` then looks at the probe.
        """
        from luthier.core.errors import ModelError

        try:
            self._install()
        except ModelError as error:
            self.refused = error.what
        return self

    def _install(self) -> None:
        from luthier.core.errors import ModelError
        from luthier.models import compiled, int8, trunk

        if self.switches.get("eight_bits"):
            int8.install_checked(self.adapted, self.rows[:3])
        if self.switches.get("compiled"):
            found = compiled.difference(self.adapted, self.rows[:3])
            if isinstance(found, str):
                raise ModelError(found)
        if self.switches.get("trunk_cache"):
            said: list[dict[str, Any]] = []
            file = self.folder / "trunk.bin"
            if not trunk.install(self.adapted, self.rows, file, lambda kind, **facts: said.append(facts)):
                raise ModelError(said[-1]["what"])

    def load(self, adapter: str) -> None:
        """An adapter folder of any arm."""
        from safetensors.torch import load_file

        attached: Any = self.adapted.attached
        tensors = load_file(Path(adapter) / "adapter_model.safetensors")
        attached.load_tensors({key: value.float() for key, value in tensors.items()}, adapter)

    def _plain_loss(self, batch: Any) -> Any:
        """Logits of every token at once and torch's own cross entropy, instead of chunks of supervised ones."""
        import torch

        from luthier.models import forward
        from luthier.train.loss import LossOutput

        batch = batch.to(self.adapted.device)
        logits = forward.logits(self.adapted.base, self.adapted.hidden(batch)).float()
        total = torch.nn.functional.cross_entropy(logits, batch.targets, ignore_index=-100, reduction="sum")
        nothing = torch.zeros(len(batch.row_ids), device=total.device)
        return LossOutput(total, batch.supervised, nothing, nothing)

    def check(self, save: str) -> dict[str, Any]:
        """Mean loss and its gradients at the probe, batched as this arm batches; from kept states where it has them."""
        from safetensors.torch import save_file

        if self.refused is not None:
            return {"refused": self.refused}
        self.load(str(self.folder / f"probe{self.ending}"))
        weights = self.adapted.parameters_by_name()
        self.adapted.train()
        for _ in range(2 if self.switches.get("trunk_cache") else 1):
            for weight in weights.values():
                weight.grad = None
            total, count = 0.0, 0
            for group in self._plan(self.checked).groups(0):
                for batch in group:
                    made = self.loss(batch)
                    made.total.backward()
                    total, count = total + float(made.total.detach()), count + made.count
        found = {name: w.grad.float().cpu() / count for name, w in weights.items() if w.grad is not None}
        for weight in weights.values():
            weight.grad = None
        self.adapted.load_state(self.start)
        save_file(found, save)
        return {"loss": total / count, "gradients": save, "versions": versions(LIBRARIES), **self._peak()}

    def _plan(self, rows: Any) -> Any:
        from luthier.data.batching import BatchPlan

        return BatchPlan(rows, batch_size=self.work["rows_per_step"], shuffle=False)

    def epoch(self, save: str | None, rows: Any) -> dict[str, Any]:
        """Train one epoch in the product's own loop."""
        from luthier.train import loop
        from luthier.train.settings import ScheduleSettings, TrainSettings

        self.adapted.load_state(self.start)
        plan = self._plan(rows)
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
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        loop.fit(self.adapted, plan, self.loss, settings=settings, lr=self.work["lr"], total_steps=plan.steps(0))
        self._wait()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if save:
            self.adapted.attached.save(Path(save))
        return {"cpu_s": cpu, "wall_s": wall, "slots": self.slots, **self._peak()}

    def _wait(self) -> None:
        """A GPU works on while Python runs ahead."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def _peak(self) -> dict[str, float]:
        return peaks(self.on_gpu)

    def judge(self, adapter: str) -> dict[str, Any]:
        """Mean loss over the supervised tokens of the first rows with this adapter, row by row."""
        import torch

        from luthier.engine.batch import from_rows

        self.load(adapter)
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
    """GFLOP a second of the product that this model has most of, the best of several: CPU-seconds, or a GPU's own."""
    import torch

    config = json.loads((folder / "model" / "config.json").read_text("utf-8"))
    work = json.loads((folder / "work.json").read_text("utf-8"))
    on_gpu = work["device"] != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    options: dict[str, Any] = {"device": work["device"], "dtype": getattr(torch, work["dtype"])}
    narrow, tokens = config["hidden_size"], 8192 if on_gpu else 2048
    wide = config.get("intermediate_size") or config["ffn_dim"]
    states, weight = torch.randn(tokens, narrow, **options), torch.randn(wide, narrow, **options)
    out = torch.empty(tokens, wide, **options)
    best = 0.0
    for _ in range(6):
        began, times = clock(), 0
        while clock() - began < 0.15:
            for _ in range(20 if on_gpu else 1):
                torch.mm(states, weight.t(), out=out)
                times += 1
            if on_gpu:
                torch.cuda.synchronize()
        best = max(best, 2 * tokens * narrow * wide * times / (clock() - began) / 1e9)
    return {"gemm_gflops": best}


class Worker:
    """Answers orders; makes its model when the first order needs one."""

    def __init__(self, folder: Path, arm: str):
        self.folder = folder
        kind = KINDS.get(arm)
        self.switches = dict(kind.switches) if kind else {}
        self.made: dict[str, Bench] = {}

    def bench(self, objective: str = "") -> Bench:
        """This arm's model, or the judge's for an objective."""
        if objective not in self.made:
            switches = {"adapter": "top"} if objective == "top" else self.switches
            self.made[objective] = Bench(self.folder, switches).install()
        return self.made[objective]

    def answer(self, do: str, order: dict[str, Any]) -> dict[str, Any]:
        """One order."""
        from luthier.bench import exact
        from luthier.bench.work import prepare

        if do == "prepare":
            return prepare(self.folder, order.pop("shape"), order.pop("rows"), **order)
        if do == "reference":
            return exact.reference(self.folder, order["objectives"])
        if do == "compare":
            return exact.compare(self.folder, order["found"], order["objective"])
        if do == "gemm":
            return gemm(self.folder)
        if do == "judge":
            return self.bench("top" if order["objective"] == "top" else "").judge(order["adapter"])
        bench = self.bench()
        if do == "check":
            return bench.check(order["save"])
        if do == "warm":
            few = bench.work["rows_per_step"]
            return bench.epoch(None, bench.rows if bench.switches.get("trunk_cache") else bench.rows[:few])
        return bench.epoch(order["save"], bench.rows)


def main(folder: Path, arm: str, threads: int) -> None:
    """Answer orders until stdin ends."""

    def make() -> Answer:
        worker = Worker(folder, arm)
        return lambda order: worker.answer(order.pop("do"), order)

    serve(threads, make)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
