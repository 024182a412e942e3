"""What every peer's arm does: load, check, warm up, train an epoch in the peer's own loop, save.

A peer's file says how; here is when, and what is counted. The check goes through the peer's whole loop too: one step
whose gradients are taken just before the optimizer uses them.
"""

from __future__ import annotations

import importlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .orders import Answer, peaks, serve, versions

Rows = list[dict[str, Any]]
FILES = {
    "transformers": "trainer",
    "documents": "trainer",
    "trl": "trl",
    "unsloth": "unsloth",
    "llamafactory": "llamafactory",
    "swift": "swift",
    "torchtune": "torchtune",
    "litgpt": "litgpt",
    "axolotl": "axolotl",
}
"""Arm, or its beginning up to an underscore, and the file of its class `Arm`."""
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "flash_attn", "liger_kernel")


class Peer(ABC):
    """One arm. `work` is work.json; `given` are all rows."""

    libraries: tuple[str, ...] = ()
    """Distributions whose versions go into the result, besides LIBRARIES."""

    def __init__(self, work: dict[str, Any], arm: str, given: Rows):
        self.work, self.arm, self.rows = work, arm, given
        self.on_gpu = work["device"] != "cpu"
        self.slots = 0
        self.model = self.load()
        self.embeddings().register_forward_pre_hook(self._count)

    @abstractmethod
    def load(self) -> Any:
        """The peer's model, with the start adapter on it."""

    def embeddings(self) -> Any:
        """The module that every position passes once."""
        return self.model.get_input_embeddings()

    @abstractmethod
    def reset(self, adapter: str) -> None:
        """Put an adapter of PEFT's format into the model."""

    @abstractmethod
    def training(self, rows: Rows, one_step: bool) -> Callable[[], float]:
        """Everything made for an epoch over `rows`; calling it trains and returns the mean loss.

        `one_step`: all rows in one update, in the arm's own micro-batches, without clipping.
        """

    def gradients(self) -> dict[str, Any]:
        """Of the adapter, by PEFT's names, as they stand now."""
        named = ((name, weight) for name, weight in self.model.named_parameters() if weight.grad is not None)
        return {name: weight.grad.detach().float().cpu().clone() for name, weight in named}

    def save(self, folder: str) -> None:
        """The adapter in PEFT's format."""
        self.model.save_pretrained(folder)

    def _count(self, module: Any, given: tuple[Any, ...]) -> None:
        self.slots += given[0].numel()

    def check(self, save: str) -> dict[str, Any]:
        """Loss and gradients of one step over the checked rows at the probe."""
        from safetensors.torch import save_file
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self.reset(self.work["probe"])
        taken: list[dict[str, Any]] = []
        train = self.training([self.rows[index] for index in self.work["checked"]], True)
        hook = register_optimizer_step_pre_hook(lambda *given: taken.append(self.gradients()))
        try:
            loss = train()
        finally:
            hook.remove()
        if len(taken) != 1:
            raise RuntimeError(f"{len(taken)} updates where one was ordered")
        save_file(taken[0], save)
        return {"loss": loss, "gradients": save, "steps": 1, "versions": versions((*LIBRARIES, *self.libraries))}

    def epoch(self, rows: Rows) -> dict[str, Any]:
        """The peer's own whole loop over the rows, from the start adapter; a GPU is waited for."""
        self.reset(self.work["start"])
        train = self.training(rows, False)
        self.slots = 0
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        train()
        self._wait()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        whole = sum(len(row["input_ids"]) for row in rows)
        if self.slots < whole:
            raise RuntimeError(f"the loop took {self.slots} tokens of {whole}: not the whole work")
        return {"cpu_s": cpu, "wall_s": wall, "slots": self.slots}

    def _wait(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """check, warm or go."""
        if order["do"] == "check":
            found = self.check(order["save"])
        elif order["do"] == "warm":
            found = self.epoch(self.rows[: self.work["rows_per_step"]])
        else:
            found = self.epoch(self.rows)
            self.save(order["save"])
        return {**found, **peaks(self.on_gpu)}


def peer_of(folder: Path, arm: str) -> Peer:
    """The arm over the work in a folder."""
    work = json.loads((folder / "work.json").read_text("utf-8"))
    rows = json.loads(Path(work["rows"]).read_text("utf-8"))
    file = FILES[arm.partition("_")[0]]
    made: Peer = importlib.import_module(f"{__package__}.{file}").Arm(work, arm, rows)
    return made


def answer_orders(folder: Path, arm: str, threads: int) -> None:
    """Until stdin ends."""

    def make() -> Answer:
        return peer_of(folder, arm).answer

    serve(threads, make)
