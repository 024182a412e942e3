"""The controller: starts one process an arm, lets them work in turn, and counts. Knows no torch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, RecipeError

OWN = ("luthier", "luthier_padded", "luthier_checkpointing", "luthier_int8", "luthier_compiled")
PLAIN = ("transformers", "documents")
TRL = ("trl", "trl_grouped", "trl_sorted", "trl_packing", "trl_padding_free")
DEFAULT = ("luthier", "luthier_padded", "transformers")
HERE = Path(__file__).parent

Say = Callable[[str], None]


class Arm:
    """One process that waits for orders."""

    def __init__(self, name: str, folder: Path, python: str, threads: int):
        self.name = name
        own = name in OWN or name == "judge"
        what = ["-m", "luthier.bench.worker"] if own else [str(HERE / "peers.py")]
        count = str(threads)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed with the process
        self.process = subprocess.Popen(
            [python, *what, str(folder), name, count],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )

    def order(self, do: str, **more: Any) -> dict[str, Any]:
        """Give one order and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no word"])[-1]
            raise LuthierError(f"the arm {self.name} failed: {last}", where="bench", remedy="leave this arm out")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """Close its input and wait; a process that is slow to leave has already said all it had to."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def choose(names: Sequence[str], trl: str | None) -> list[str]:
    """The arms that were named, or the usual ones."""
    known = (*OWN, *PLAIN, *(TRL if trl else ()))
    wanted = list(names) or [*DEFAULT, *(("trl", "trl_sorted", "trl_packing") if trl else ())]
    for name in wanted:
        if name in TRL and not trl:
            raise RecipeError(f"the arm {name} needs an interpreter", remedy="--trl PYTHON, of a venv with trl")
        if name not in known:
            raise RecipeError(f"there is no arm {name!r}", remedy=f"one of {', '.join((*OWN, *PLAIN, *TRL))}")
    return list(dict.fromkeys(("luthier", *wanted)))


def bench(
    names: Sequence[str] = (),
    *,
    shape: str = "llama25m",
    rows: int = 64,
    rounds: int = 3,
    threads: int = 1,
    trl: str | None = None,
    say: Say = lambda words: None,
) -> dict[str, Any]:
    """Measure; see docs/performance.md for what each number is."""
    from luthier.bench.work import SHAPES

    if shape not in SHAPES:
        raise RecipeError(f"there is no shape {shape!r}", where="--shape", remedy=f"one of {', '.join(SHAPES)}")
    chosen = choose(names, trl)
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as scratch:
        folder = Path(scratch)
        judge = Arm("judge", folder, sys.executable, threads)
        arms: list[Arm] = []
        try:
            work = judge.order("prepare", shape=shape, rows=rows)
            say(f"{work['count']} rows, {work['tokens']} tokens, {work['supervised']} supervised")
            for name in chosen:
                arms.append(Arm(name, folder, trl if trl and name in TRL else sys.executable, threads))
            speeds, records = _rounds(judge, arms, folder, rounds, say)
            start = judge.order("judge", adapter=work["start"])["loss"]
            losses = {name: judge.order("judge", adapter=str(folder / name))["loss"] for name in chosen}
        finally:
            for arm in (*arms, judge):
                arm.end()
    return summary(work, speeds, records, losses, start)


def _rounds(
    judge: Arm, arms: Sequence[Arm], folder: Path, rounds: int, say: Say
) -> tuple[list[float], dict[str, list[dict[str, Any]]]]:
    """Every arm an epoch in turn; the order turns with the round, so that no arm always follows the same one."""
    records: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    speeds = []
    for number in range(rounds):
        speeds.append(judge.order("gemm")["gemm_gflops"])
        turn = number % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            found = arm.order("go", save=str(folder / arm.name))
            records[arm.name].append(found)
            say(f"round {number + 1}/{rounds} {arm.name}: {found['cpu_s']:.1f} CPU-s, {found['wall_s']:.1f} s")
    return speeds, records


def summary(
    work: Mapping[str, Any],
    speeds: Sequence[float],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    losses: Mapping[str, float],
    start: float,
) -> dict[str, Any]:
    """Rates and paired ratios: each ratio is taken inside a round, then median and range over the rounds."""
    tokens, arms = work["tokens"], []
    for name, found in records.items():
        rates = [tokens / one["cpu_s"] for one in found]
        shares = [work["flops"] / one["cpu_s"] / 1e9 / speed for one, speed in zip(found, speeds, strict=True)]
        arms.append(
            {
                "name": name,
                "tokens_per_cpu_s": round(statistics.median(rates), 1),
                "tokens_per_cpu_s_range": [round(min(rates), 1), round(max(rates), 1)],
                "tokens_per_s": round(statistics.median(tokens / one["wall_s"] for one in found), 1),
                "mfu": round(statistics.median(shares), 3),
                "peak_rss_mb": round(max(one["peak_rss_mb"] for one in found), 1),
                "computed_positions": found[-1]["slots"],
                "loss": losses[name],
            }
        )
    ratios = {
        f"luthier/{name}": _ratio(records["luthier"], found) for name, found in records.items() if name != "luthier"
    }
    trl = [arm for arm in arms if arm["name"] in TRL]
    if trl:
        best = max(trl, key=lambda arm: arm["tokens_per_cpu_s"])["name"]
        ratios["luthier/trl_best"] = {**ratios[f"luthier/{best}"], "arm": best}
    about = ("shape", "count", "tokens", "supervised", "rows_per_step", "lr")
    return {
        "gemm_gflops": round(statistics.median(speeds), 1),
        "work": {**{key: work[key] for key in about}, "loss_before": start},
        "arms": arms,
        "ratios": ratios,
        "rounds": len(speeds),
        "machine": machine(),
    }


def _ratio(mine: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many times fewer CPU-seconds; `clear` where the range does not hold 1."""
    each = [theirs["cpu_s"] / ours["cpu_s"] for ours, theirs in zip(mine, other, strict=True)]
    low, high = min(each), max(each)
    found = {"median": round(statistics.median(each), 3), "range": [round(low, 3), round(high, 3)]}
    return {**found, "clear": bool(low > 1 or high < 1)}


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions."""
    import platform
    from importlib.metadata import version

    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line] \
        if cpuinfo.is_file() else []  # fmt: skip
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
