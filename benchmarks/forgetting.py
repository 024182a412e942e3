"""Does LoRA forget less than full tuning at the same loss on the task?

    python benchmarks/forgetting.py MODEL TARGET.txt GENERAL.txt [--seeds 3] [--steps 150] [--out FILE.json]

For every seed and each of two LoRA rates: LoRA (r 8) is tuned on TARGET for `steps` steps; full tuning, at three rates,
runs until its loss on held-out TARGET is as low. What FILE holds already is kept.
Then the loss on GENERAL, before and after, with paired 95 % intervals by window.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.adapted import AdaptedModel, attach
from luthier.core.types import Row
from luthier.data.batching import BatchPlan
from luthier.data.templates import TEMPLATES
from luthier.evaluate.guards import guard
from luthier.evaluate.losses import row_losses
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS

WINDOW = 128
BATCH = 8
EVERY = 2
HELD_OUT = 48
MOST_ROUNDS = 4
LORA_RATES = (2e-3, 5e-4)
ARMS = {
    "lora": ({"name": "lora", "r": 8}, None),
    "full": ({"name": "full"}, 5e-4),
    "full, a fifth of the rate": ({"name": "full"}, 1e-4),
    "full, four times the rate": ({"name": "full"}, 2e-3),
}


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("target", type=Path)
    parser.add_argument("general", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "forgetting.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = json.loads(given.out.read_text("utf-8"))["runs"] if given.out.is_file() else []
    rates = {name: rate or LORA_RATES for name, (_, rate) in ARMS.items()}
    known = {(run["seed"], run["lora_rate"]): run for run in runs}
    for seed, lora_rate in itertools.product(range(given.seeds), LORA_RATES):
        known[seed, lora_rate] = one(given, known.get((seed, lora_rate), {"seed": seed, "lora_rate": lora_rate}))
        runs = [known[key] for key in sorted(known)]
        found = {"steps": given.steps, "batch_tokens": BATCH * WINDOW, "rates": rates, "runs": runs}
        given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def one(given: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Every arm that `found` lacks; the first arm sets the goal."""
    seed, lora_rate = found["seed"], found["lora_rate"]
    for name, (method, rate) in ARMS.items():
        if name in found:
            continue
        goal = found["lora"]["target_loss"] if "lora" in found else None
        adapted = fresh(given.model, method, seed)
        target, general = windows(adapted, given.target), windows(adapted, given.general)
        order = np.random.default_rng(seed).permutation(len(target))
        held_out, rows = [target[i] for i in order[:HELD_OUT]], [target[i] for i in order[HELD_OUT:]]
        with adapted.off():
            untouched = row_losses(adapted, held_out).loss
        steps, loss = learn(adapted, rows, held_out, given.steps, rate or lora_rate, seed, goal)
        places = np.linspace(0, len(general) - 1, 2 * HELD_OUT).astype(int)
        change = guard(adapted, [general[i] for i in places], resamples=1000, seed=seed)
        found[name] = {"steps": steps, "target_before": untouched, "target_loss": loss, "general": change}
        print(
            seed,
            lora_rate,
            name,
            steps,
            f"{untouched:.4f} {loss:.4f} {change['value']:+.4f}",
            change["ci95"],
            flush=True,
        )
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
    """(steps, held-out loss): all steps, or until the held-out loss is at the goal. AdamW, constant rate."""
    weights = [weight for weight in adapted.parameters_by_name().values() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    plan = BatchPlan(rows, batch_tokens=None, batch_size=BATCH, seed=seed)
    most = steps if goal is None else MOST_ROUNDS * steps
    groups = (group for epoch in itertools.count() for group in plan.groups(epoch))
    for step, group in enumerate(itertools.islice(groups, most), start=1):
        adapted.train()
        made = adapted.loss(group[0])
        optimizer.zero_grad()
        (made.total / made.count).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if goal is not None and step % EVERY == 0:
            loss = row_losses(adapted, held_out).loss
            if loss <= goal:
                return step, loss
    return most, row_losses(adapted, held_out).loss


if __name__ == "__main__":
    main()
