"""The controller: starts one process an arm, checks what they compute, lets them work in turn, and counts.

    prepare → reference → check every arm → warm up → rounds → losses after the epoch agree → figures

An arm that fails a check is dropped, and that is said. No ratio is taken from an arm that computes something else.
Torch is imported only to ask whether there is a GPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.bench import figures
from luthier.bench.arms import DEFAULT, KINDS, LEAST_SHARED, OWN, PLAIN, TRL, choose, interpreters
from luthier.bench.crew import Arm, Crew, free_memory
from luthier.bench.figures import machine, summary
from luthier.core.errors import GateFailed, LuthierError, RecipeError

__all__ = ["DEFAULT", "OWN", "PLAIN", "TRL", "Arm", "bench", "choose", "interpreters", "machine", "summary"]

Say = Callable[[str], None]


def bench(
    names: Sequence[str] = (),
    *,
    shape: str = "llama25m",
    rows: int = 64,
    rounds: int = 3,
    threads: int = 1,
    trl: str | None = None,
    pythons: Sequence[str] = (),
    data: str | None = None,
    prefix: int = 0,
    device: str = "cpu",
    dtype: str = "auto",
    say: Say = lambda words: None,
) -> dict[str, Any]:
    """Measure; see docs/performance.md for what each number is."""
    from luthier.bench.shapes import SHAPES

    if shape not in SHAPES:
        raise RecipeError(f"there is no shape {shape!r}", where="--shape", remedy=f"one of {', '.join(SHAPES)}")
    known = interpreters(pythons, trl)
    device, dtype = place(device, dtype)
    architecture = SHAPES[shape][0]
    choose(names, known, device, LEAST_SHARED, architecture)  # what is misspelt is told before anything is made
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as scratch:
        folder = Path(scratch)
        work = _first(
            folder, threads, "prepare", shape=shape, rows=rows, data=data, prefix=prefix, device=device, dtype=dtype
        )
        chosen = choose(names, known, device, work["shared"], architecture)
        say(f"{work['count']} rows, {work['tokens']} tokens, {work['supervised']} supervised")
        objectives = sorted({KINDS[name].objective for name in chosen if not KINDS[name].lossy} | {"answers"})
        _first(folder, threads, "reference", objectives=objectives)
        judge = Arm("judge", folder, sys.executable, threads)
        free = free_memory if device == "cpu" else lambda: None
        crew = Crew(folder, known, threads, work["base_bytes"], free)
        try:
            return _measured(Measuring(judge, crew, folder, say), work, chosen, rounds)
        finally:
            crew.end_all()
            judge.end()


def _first(folder: Path, threads: int, do: str, **more: Any) -> dict[str, Any]:
    """One order to a process of its own: what it held is free again afterwards."""
    arm = Arm("judge", folder, sys.executable, threads)
    try:
        return arm.order(do, **more)
    finally:
        arm.end()


def place(device: str, dtype: str) -> tuple[str, str]:
    """The device that `auto` means, and the base's dtype: bfloat16 on a GPU, float32 on a CPU."""
    if device not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"there is no device {device!r}", where="--device", remedy="auto, cpu or cuda")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise RecipeError(f"there is no dtype {dtype!r}", where="--dtype", remedy="auto, float32 or bfloat16")
    if device != "cpu":
        import torch

        there = torch.cuda.is_available()
        if device == "cuda" and not there:
            raise RecipeError("no GPU that torch can use", where="--device", remedy="cpu or auto")
        device = "cuda" if there else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return device, dtype


class Measuring:
    """The steps of one measurement over its processes."""

    def __init__(self, judge: Any, crew: Any, folder: Path, say: Say):
        self.judge, self.crew, self.folder, self.say = judge, crew, folder, say
        self.dropped: list[dict[str, Any]] = []
        self.checks: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}

    def drop(self, name: str, why: str) -> None:
        """Say it, keep it for the JSON, end the process. Without luthier's own arm there is nothing to compare."""
        self.dropped.append({"name": name, "why": why})
        self.say(f"{name} is dropped: {why}")
        self.crew.end(name)
        if name == "luthier":
            raise GateFailed(f"luthier is not exact here, or fails: {why}", where="bench", remedy="no figure is given")

    def correct(self, names: Sequence[str]) -> list[str]:
        """Those whose loss and gradients are right; a lossy one has to pass the product's own refusal."""
        kept = []
        for name in names:
            kind, found = KINDS[name], {}
            try:
                found = self.crew.order(name, "check", save=str(self.folder / f"{name}-gradients.safetensors"))
            except LuthierError as error:
                self.drop(name, error.what)
                continue
            if "refused" in found:
                self.drop(name, f"refused: {found['refused']}")
                continue
            self.versions[name] = found["versions"]
            check = self.judge.order("compare", found=found, objective=kind.objective)
            self.checks[name] = {**check, "lossy": kind.lossy, "objective": kind.objective}
            if not check["ok"] and not kind.lossy:
                self.drop(name, _off(check))
                continue
            self.say(f"{name}: loss off by {check['loss_error']:.1e}, gradients by {check['gradient_error']:.1e}")
            kept.append(name)
        return kept

    def rounds(self, names: Sequence[str], count: int) -> tuple[list[float], dict[str, list[Any]], list[list[float]]]:
        """One that is not counted, then every arm an epoch in turn; the order turns with the round.

        An arm that cannot do its epoch (or leaves rows out) is dropped, with all that was seen of it.
        """
        records: dict[str, list[Any]] = {name: [] for name in names if self._did(name, "warm") is not None}
        speeds, loads = [], []
        for number in range(count):
            loads.append(figures.load())
            speeds.append(self.judge.order("gemm")["gemm_gflops"])
            left = list(records)
            turn = number % len(left)
            for name in (*left[turn:], *left[:turn]):
                found = self._did(name, "go", save=str(self.folder / name))
                if found is None:
                    del records[name]
                    continue
                records[name].append(found)
                self.say(f"round {number + 1}/{count} {name}: {found['cpu_s']:.1f} CPU-s, {found['wall_s']:.1f} s")
        return speeds, records, loads

    def _did(self, name: str, do: str, **more: Any) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.crew.order(name, do, **more)
        except LuthierError as error:
            self.drop(name, error.what)
            return None
        return found

    def loss(self, adapter: str, objective: str = "answers") -> float:
        """Of the rows with an adapter, judged by one process for all arms."""
        return float(self.judge.order("judge", adapter=adapter, objective=objective)["loss"])


def _off(check: Mapping[str, Any]) -> str:
    """How far from the reference, and what was allowed; None is NaN, infinite or missing."""
    parts = []
    for name in ("loss_error", "gradient_error"):
        allowed = check["tolerance"] + check["rounding"][name]
        value = "no number" if check[name] is None else f"{check[name]:.2g}"
        parts.append(f"{name.replace('_', ' ')} {value}, allowed {allowed:.2g}")
    return "; ".join(parts)


def _measured(measuring: Measuring, work: Mapping[str, Any], chosen: Sequence[str], rounds: int) -> dict[str, Any]:
    names = measuring.correct(chosen)
    speeds, records, loads = measuring.rounds(names, rounds)
    together = not measuring.crew.ended_for_room
    measuring.crew.end_all()
    start = measuring.loss(work["start"])
    losses = {
        name: measuring.loss(str(measuring.folder / name), "top" if KINDS[name].objective == "top" else "answers")
        for name in records
    }
    for name, why in figures.disagreeing(losses, start, work["dtype"] != "float32").items():
        measuring.drop(name, why)
        del records[name]
    return summary(
        work,
        speeds,
        records,
        losses,
        start,
        checks=measuring.checks,
        versions=measuring.versions,
        dropped=measuring.dropped,
        load=loads,
        alive="together" if together else "one after the other where memory asked for it",
    )
