"""The scaled-down window extension: a small Llama learns to copy within 64 positions and is taken to 256.

    python benchmarks/bench_context.py [--seeds 0 1 2] [--out benchmarks/results] [--plot docs/images/context.png]

The text is a random segment (length L/8 … L/2) repeated until L; what is scored is the second copy. Every method of
the family is measured untuned at 1×, 2× and 4× of the window, then none, linear and yarn are tuned for 120 steps at
the long window ("none" tuned is the control), yarn once more with shifted sparse attention.
Writes context.json after every seed (one that stands there with the same settings is not run again) and a plot, and
exits 1 when one of the inequalities does not hold for every seed. About 3 minutes a seed on one free core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from luthier.context import CONTEXTS
from luthier.core.seeding import generator, seed_everything
from luthier.engine.attention import Segments
from luthier.engine.shifted import Shifted, shifted_attention

WINDOW, TARGET, WORDS = 64, 256, 64
LENGTHS = (64, 128, 256)
UNTUNED = ("none", "linear", "ntk", "dynamic", "by_parts", "yarn", "llama3")
SHIFTED = ", shifted"
"""Tuned with shifted sparse attention in groups of the old window, measured with the whole."""
TUNED = ("none", "linear", "yarn", "yarn" + SHIFTED)
COLOURS = ("#8aa4b8", "#d9b48f", "#b4531f", "#e0a38d")
RESULTS = Path(__file__).parent / "results"
CONFIG = {
    "vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": WINDOW, "model_type": "llama",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


def rows(source: np.random.Generator, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [count, length], targets: the second copy but for its first token, -100 elsewhere)."""
    tokens = np.zeros((count, length), np.int64)
    second = np.full((count, length), -100)
    for row in range(count):
        size = int(source.integers(length // 8, length // 2 + 1))
        tokens[row] = np.resize(source.integers(0, WORDS, size), length)
        second[row, size : 2 * size - 1] = tokens[row, size + 1 : 2 * size]
    return torch.from_numpy(tokens), torch.from_numpy(second)


def build(method: str, weights: dict[str, torch.Tensor] | None = None) -> LlamaForCausalLM:
    """The model, built with the method's changed config."""
    changed: dict[str, Any] = {}
    if method != "none":
        changed = CONTEXTS.parse({"name": method, "length": TARGET}).plan(CONFIG)["config"]
    given = {key: value for key, value in (CONFIG | changed).items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**given))
    if weights is not None:
        model.load_state_dict(weights)
    return model


def shifted(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """transformers' signature: [B, heads, L, d] → ([B, L, heads, d], None)."""
    batch, _, length, _ = query.shape
    groups = Shifted.of(Segments.of([length * row for row in range(batch + 1)]), WINDOW)
    flat = (tensor.transpose(0, 1).flatten(1, 2) for tensor in (query, key, value))
    return shifted_attention(*flat, groups).unflatten(0, (batch, length)), None


AttentionInterface.register("shifted", shifted)


def train(model: LlamaForCausalLM, source: np.random.Generator, steps: int, batch: int, length: int, lr: float) -> None:
    """Adam with a short warm-up and a cosine to a tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, min(50, steps // 10))
    model.train()
    for step in range(steps):
        share = min(1.0, (step + 1) / warm) * (0.55 + 0.45 * np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        tokens, targets = rows(source, batch, length)
        loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def measure(model: LlamaForCausalLM) -> dict[str, dict[str, float]]:
    """length → {"accuracy", "nll"} on the second copy of 64 fixed rows."""
    model.eval()
    found = {}
    for length in LENGTHS:
        tokens, targets = rows(generator(7, "held out", length), 64, length)
        logits = torch.cat([model(part).logits for part in tokens.split(16)])
        keep = targets != -100
        nll = torch.nn.functional.cross_entropy(logits[keep], targets[keep])
        right = (logits[keep].argmax(-1) == targets[keep]).float().mean()
        found[str(length)] = {"accuracy": round(float(right), 4), "nll": round(float(nll), 4)}
    return found


def one_seed(seed: int, steps: int, tune_steps: int) -> dict[str, Any]:
    """Pre-train, measure all methods untuned, tune three."""
    seed_everything(seed)
    began = time.process_time()
    model = build("none")
    train(model, generator(seed, "pretrain"), steps, 64, WINDOW, 3e-3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found: dict[str, Any] = {"pretrain_cpu_s": round(time.process_time() - began, 1), "untuned": {}, "tuned": {}}
    for method in UNTUNED:
        found["untuned"][method] = measure(build(method, weights))
        sys.stdout.write(f"seed {seed} {method}: {found['untuned'][method]}\n")
    for method in TUNED:
        model = build(method.removesuffix(SHIFTED), weights)
        if method.endswith(SHIFTED):
            model.set_attn_implementation("shifted")
        train(model, generator(seed, "tune"), tune_steps, 8, TARGET, 1e-3)
        model.set_attn_implementation("sdpa")
        found["tuned"][method] = measure(model)
        sys.stdout.write(f"seed {seed} {method} tuned: {found['tuned'][method]}\n")
        sys.stdout.flush()
    found["cpu_s"] = round(time.process_time() - began, 1)
    return found


def judge(seeds: dict[str, Any]) -> dict[str, bool]:
    """The inequalities, each for every seed."""

    def accuracy(found: dict[str, Any], kind: str, method: str, length: int = TARGET) -> float:
        return float(found[kind][method][str(length)]["accuracy"])

    every = list(seeds.values())
    return {
        "inside the window >= .9": all(accuracy(s, "untuned", "none", WINDOW) >= 0.9 for s in every),
        "linear - none >= .08": all(
            accuracy(s, "untuned", "linear") - accuracy(s, "untuned", "none") >= 0.08 for s in every
        ),
        "yarn - linear >= .10": all(
            accuracy(s, "untuned", "yarn") - accuracy(s, "untuned", "linear") >= 0.10 for s in every
        ),
        "tuned linear >= .85": all(accuracy(s, "tuned", "linear") >= 0.85 for s in every),
        "tuned yarn >= tuned linear - .02": all(
            accuracy(s, "tuned", "yarn") >= accuracy(s, "tuned", "linear") - 0.02 for s in every
        ),
    }


def plot(seeds: dict[str, Any], file: Path) -> None:
    """Accuracy of every arm at 1×, 2× and 4×: a dot a seed, a bar for the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = [("untuned", name) for name in UNTUNED] + [("tuned", name) for name in TUNED]
    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    for place, length in enumerate(LENGTHS):
        values = np.array([[s[kind][name][str(length)]["accuracy"] for s in seeds.values()] for kind, name in arms])
        where = np.arange(len(arms)) + (place - 1) * 0.27
        axes.bar(
            where, values.mean(1), 0.25, color=COLOURS[place], label=f"{length} tokens ({length // WINDOW}×)", zorder=2
        )
        axes.scatter(np.repeat(where, values.shape[1]), values.ravel(), s=6, color="black", zorder=3)
    axes.axhline(1 / WORDS, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(arms)), [name if kind == "untuned" else f"{name}\ntuned" for kind, name in arms])
    axes.set(ylabel="accuracy on the second copy", ylim=(0, 1))
    shown = f"Trained at {WINDOW} tokens, extended to {TARGET}; a dot a seed, dotted: chance"
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), title=shown)
    axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=90)


def table(seeds: dict[str, Any]) -> str:
    """Means over the seeds as Markdown, with the range at the long window."""
    lines = ["| method | 64 | 128 | 256 | range at 256 | nll at 256 |", "|---|---|---|---|---|---|"]
    for kind, names in (("untuned", UNTUNED), ("tuned", TUNED)):
        for name in names:
            found = [seed[kind][name] for seed in seeds.values()]
            means = [f"{np.mean([one[str(n)]['accuracy'] for one in found]):.3f}" for n in LENGTHS]
            last = [one[str(TARGET)]["accuracy"] for one in found]
            nll = np.mean([one[str(TARGET)]["nll"] for one in found])
            shown = name if kind == "untuned" else f"{name}, tuned"
            lines.append(f"| {shown} | {' | '.join(means)} | {min(last):.3f} to {max(last):.3f} | {nll:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Run what is missing of the asked seeds, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--tune-steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=RESULTS.parents[1] / "docs" / "images" / "context.png")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "context.json"
    plan = {"steps": asked.steps, "tune_steps": asked.tune_steps}
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    seeds = known["seeds"] if known.get("settings") == plan else {}
    for seed in asked.seeds:
        if str(seed) not in seeds:
            seeds[str(seed)] = one_seed(seed, asked.steps, asked.tune_steps)
        holds = judge(seeds)
        facts = {"window": WINDOW, "target": TARGET, "floor": 1 / WORDS, "torch": torch.__version__, "threads": 1}
        facts["machine"] = f"{platform.machine()} {platform.system()}"
        seeds = {name: seeds[name] for name in sorted(seeds)}
        file.write_text(json.dumps({"settings": plan, **facts, "holds": holds, "seeds": seeds}, indent=1) + "\n")
    plot(seeds, asked.plot)
    sys.stdout.write(table(seeds) + "\n")
    sys.stdout.write("".join(f"{'holds' if ok else 'FAILS'}: {name}\n" for name, ok in judge(seeds).items()))
    return 0 if all(judge(seeds).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
