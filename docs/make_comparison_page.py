"""Writes docs/methods/comparison.md from benchmarks/results: `python docs/make_comparison_page.py`. A test keeps it
fresh."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

PAGE = Path(__file__).parent / "methods" / "comparison.md"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

HEAD = """\
# Methods against each other

Made from `benchmarks/results`. Every method at its own default rate and schedule.
"""
ENCODERS = """
## An encoder with a classification head

`benchmarks/bench_encoders.py`: all-MiniLM-L6-v2 (22.7 million weights), at most {rows} training rows (sib200 has 701),
{epochs} epochs, batches of {batch} rows, the test split measured once after the last step. The probe trains the head
alone, to convergence, on the frozen encoder's pooled state. CPU-seconds of the training, one thread. The default
rates of LoRA and of prefixes on encoders were chosen on these sets with other seeds; on another set they are a first
guess, and `lr: probe` looks around.
"""
GENERATION = """
## A small decoder that puts facts into sentences

`benchmarks/bench_generation.py`: E2E on {model}, {rows} training rows, {epochs} epochs for every method, greedy answers
to {asked} test rows; what `luthier compare` prints, the base first. Virtual
tokens alone lower the loss of so small a base, but steer it hardly within these steps: no usable sentence yet, one run
a method, equal epochs rather than each at its best.
"""
NONE = "\nNot measured yet: `python benchmarks/{script} --help` says how.\n"
GOALS = ("probe < lora", "lora, bottleneck, full within 2 points", "prefix >= full - 4 points")
SEEDS = 3
ORDER = ("probe", "prefix", "lora", "bottleneck", "full")


def page() -> str:
    """The whole page."""
    return HEAD + encoders(read("encoders.json")) + generation(read("generation.json"))


def read(name: str) -> dict[str, Any] | None:
    """A result file, None where it is not there."""
    file = RESULTS / name
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def spread(values: Sequence[float], digits: int = 1) -> str:
    """mean ± sd."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def judge(cells: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Which of GOALS hold for the mean accuracies of one data set; goals whose methods are missing are left out."""
    points = {
        method: 100 * mean(cell["accuracy"] for cell in cells if cell["method"] == method)
        for method in {cell["method"] for cell in cells}
    }
    found = {}
    if {"probe", "lora"} <= points.keys():
        found[GOALS[0]] = points["probe"] < points["lora"]
    if {"lora", "bottleneck", "full"} <= points.keys():
        three = [points[name] for name in ("lora", "bottleneck", "full")]
        found[GOALS[1]] = max(three) - min(three) <= 2
    if {"prefix", "full"} <= points.keys():
        found[GOALS[2]] = points["prefix"] >= points["full"] - 4
    return found


def encoders(found: dict[str, Any] | None) -> str:
    """A table for each data set, and what holds."""
    if found is None:
        return ENCODERS.format(rows=1000, epochs=3, batch=16) + NONE.format(script="bench_encoders.py")
    text = ENCODERS.format(rows=found["rows"], epochs=found["epochs"], batch=found["batch"])
    for name in sorted({cell["set"] for cell in found["cells"]}):
        cells = [cell for cell in found["cells"] if cell["set"] == name]
        text += f"\n**{name}** ({cells[0]['train_rows']} training rows, {cells[0]['test_rows']} test rows)\n\n"
        text += "| method | accuracy, % | loss | trained share, % | CPU s | seeds |\n|---|---|---|---|---|---|\n"
        for method in ORDER:
            mine = [cell for cell in cells if cell["method"] == method]
            if mine:
                accuracy, loss = [100 * cell["accuracy"] for cell in mine], [cell["loss"] for cell in mine]
                text += f"| {method} | {spread(accuracy)} | {spread(loss, 3)} | {100 * mine[0]['share']:.3f} "
                text += f"| {mean(cell['cpu_seconds'] for cell in mine):.0f} | {len(mine)} |\n"
        if any(sum(cell["method"] == method for cell in cells) < SEEDS for method in ORDER):
            text += "\nNot finished: a method without three seeds is no result yet.\n"
        text += "\n" + "".join(f"- {goal}: {'holds' if ok else '**misses**'}\n" for goal, ok in judge(cells).items())
    return text


def generation(found: dict[str, Any] | None) -> str:
    """One table: base, then every method."""
    if found is None:
        head = GENERATION.format(model="stories260K", rows=480, epochs=3, asked=80)
        return head + NONE.format(script="bench_generation.py")
    sizes = found["sizes"]
    text = GENERATION.format(model=found["model"], rows=sizes["train"], epochs=found["epochs"], asked=sizes["test"])
    text += "\n| method | loss | BLEU | ROUGE-L | trained share, % | training s |\n|---|---|---|---|---|---|\n"
    runs = found["compare"]["runs"]
    text += f"| base | {numbers(runs[0]['metrics']['base'])} | | |\n"
    for run in runs:
        cost = run["cost"]
        share = f"{100 * (cost.get('share') or 0):.2f}"
        text += f"| {run['name']} | {numbers(run['metrics']['tuned'])} | {share} | {cost['seconds']:.0f} |\n"
    return text


def numbers(metrics: dict[str, float]) -> str:
    """Loss, BLEU, ROUGE-L."""
    return f"{metrics['loss']:.3f} | {metrics['bleu']:.3f} | {metrics['rougeL']:.3f}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
