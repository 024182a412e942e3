"""Does LoRA forget less than full tuning at the same loss on the task?

    python benchmarks/forgetting.py MODEL TARGET.txt GENERAL.txt [--seeds 3] [--steps 150] [--out FILE.json]

For every seed: LoRA (all linear layers, r 8) is tuned on TARGET for `steps` steps; full tuning runs until its loss on
held-out TARGET is as low. Then the loss on GENERAL, before and after, with paired 95 % intervals by window.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.adapted import AdaptedModel, attach
from luthier.core.types import Row
from luthier.data.templates import TEMPLATES
from luthier.evaluate.guards import guard
from luthier.evaluate.losses import row_losses
from luthier.health.plants.world import train
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS

WINDOW = 128
BATCH = 8
EVERY = 10
HELD_OUT = 48
RATES = {"lora": 2e-3, "full": 5e-4}


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("target", type=Path)
    parser.add_argument("general", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("forgetting.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = [one(given, seed) for seed in range(given.seeds)]
    given.out.write_text(json.dumps({"steps": given.steps, "rates": RATES, "runs": runs}, indent=1) + "\n", "utf-8")


def one(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Both methods with one seed."""
    found: dict[str, Any] = {"seed": seed}
    goal = None
    for method in ("lora", "full"):
        adapted = fresh(given.model, {"name": "lora", "r": 8} if method == "lora" else {"name": "full"}, seed)
        target, general = windows(adapted, given.target), windows(adapted, given.general)
        order = np.random.default_rng(seed).permutation(len(target))
        held_out, rows = [target[i] for i in order[:HELD_OUT]], [target[i] for i in order[HELD_OUT:]]
        steps, loss = learn(adapted, rows, held_out, given.steps, RATES[method], seed, goal)
        goal = loss if goal is None else goal
        places = np.linspace(0, len(general) - 1, 2 * HELD_OUT).astype(int)
        change = guard(adapted, [general[i] for i in places], resamples=1000, seed=seed)
        found[method] = {"steps": steps, "target_loss": loss, "general": change}
        print(seed, method, steps, f"{loss:.4f}", f"{change['value']:+.4f}", change["ci95"])
    return found


def fresh(model: str, method: dict[str, Any], seed: int) -> AdaptedModel:
    """The method on the base, for plain documents."""
    base = load_base(ModelSettings.model_validate({"path": model, "device": "cpu"}), task="language_model", seed=seed)
    return attach(base, method, TASKS.parse("language_model"), TEMPLATES.parse("plain"), seed=seed, max_length=WINDOW)


def windows(adapted: AdaptedModel, file: Path) -> list[Row]:
    """The text as windows of WINDOW tokens."""
    ids = adapted.base.tokenizer(file.read_text("utf-8")[:400_000], add_special_tokens=False).input_ids
    parts = [np.array(ids[i : i + WINDOW], np.int32) for i in range(0, len(ids) - WINDOW, WINDOW)]
    return [Row(f"{file.stem}.{index}", part, part.copy()) for index, part in enumerate(parts)]


def learn(
    adapted: AdaptedModel, rows: list[Row], held_out: list[Row], steps: int, rate: float, seed: int, goal: float | None
) -> tuple[int, float]:
    """(steps, held-out loss): all steps, or until the held-out loss is at the goal."""
    done = 0
    while True:
        part = steps if goal is None else EVERY
        train(adapted, rows, lr=rate, steps=part, seed=seed + done, batch=BATCH)
        done += part
        loss = row_losses(adapted, held_out).loss
        if goal is None or loss <= goal or done >= 4 * steps:
            return done, loss


if __name__ == "__main__":
    main()
