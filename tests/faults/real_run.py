"""A real training of a real method on the built-in base, up to the saved adapter, for forked children.

Data and base are made once in the parent; a child attaches the method to its own copy and trains by the pipeline's
own stages, so that the only thing missing from a run is what comes after the adapter (measuring, the report).
"""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from luthier.core.events import TIMING, Emitter, JsonLines, read_jsonl
from luthier.core.rundir import RunDir
from luthier.core.seeding import seed_everything
from luthier.pipeline import learn, prepare
from luthier.recipe import Recipe
from luthier.tasks import TASKS

METHODS = {
    "lora": "{name: lora, r: 4, dropout: 0.1}",
    "prefix_mlp": "{name: prefix, length: 4, mlp: 16}",
    "p_tuning": "{name: p_tuning, length: 4, hidden: 16}",
    "bottleneck": "{name: bottleneck, reduction: 16, dropout: 0.1}",
    "full": "full",
}
RECIPE = """
model: {path: builtin, dropout: 0.1}
data: {train: "builtin:short_en", max_rows: 48, max_length: 48, split: {group: none}}
train: {steps: 8, batch_size: 2, accumulate: 2, lr: 2e-3, save_every: 2, evaluate_every: 3, threads: 1,
        keep_checkpoints: 2, early_stop: {patience: 9}}
"""


@functools.cache
def stages():
    """Rows and base, made once."""
    recipe = Recipe.parse(RECIPE)
    task = TASKS.parse(recipe.task)
    loaded, splits = prepare.read(recipe, task)
    labels, problem = prepare.label_names(splits.train, task)
    base = prepare.load_model(recipe, task, labels, problem)
    data = prepare.encode(recipe, loaded, splits, task, base, labels, problem, None)
    return SimpleNamespace(task=task, base=base, data=data)


def train(folder, kind, listen=None):
    """The same call begins, continues and repeats; only ever called in a forked child (it changes the base)."""
    torch.set_num_threads(1)
    recipe = Recipe.parse(RECIPE, f"method={METHODS[kind]}")
    made, run = stages(), RunDir(Path(folder))
    log = JsonLines(run.events)
    emit = Emitter(log, *([listen] if listen else []))
    try:
        seed_everything(recipe.seed)
        adapted = learn.adapt(recipe, made.base, made.task, made.data, emit)
        learn.train(recipe, adapted, made.data, run, emit, log)
        adapted.save(run.adapter)
    finally:
        log.close()


def outcome(folder):
    """What must be equal to the bit: the final adapter, and both logs without the fields that are times."""
    run = RunDir(Path(folder))

    def log(path):
        return json.dumps([{k: v for k, v in record.items() if k not in TIMING} for record in read_jsonl(path)])

    weights = load_file(run.adapter / "adapter_model.safetensors")
    return {
        "weights": {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in weights.items()},
        "events": log(run.events),
        "rows": log(run.rows),
    }
