"""One planted fault for every diagnosis, made the way it happens to people."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.seeding import generator
from luthier.core.types import IGNORE, Row
from luthier.health.plants import healthy
from luthier.health.plants.healthy import Case
from luthier.health.plants.world import FIRST, LABELS, STOP, WINDOW, WORDS, World, train

Plant = Callable[[World, int], Case]
PLANTS: dict[str, Plant] = {}
"""diagnosis → the plant that it must find."""
LORA = {"name": "lora", "r": 8}


def plants(diagnosis: str) -> Callable[[Plant], Plant]:
    """Decorator: this plant must be found by that diagnosis."""

    def note(plant: Plant) -> Plant:
        PLANTS[diagnosis] = plant
        return plant

    return note


def _factors(adapted: Any) -> list[Any]:
    """PEFT's layers of a LoRA."""
    return [part for _, part in adapted.attached.branches()]


@plants("dead_adapter")
def dead_adapter(world: World, seed: int) -> Case:
    """A and B are both zero: no gradient can ever arrive."""
    adapted = world.fresh(LORA, seed)
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.zero_()
    events = train(adapted, world.rows(64, "train"), lr=3e-3, steps=10, seed=seed)
    return Case(adapted, world.rows(48, "validation"), {"events": events, "card": adapted.card()})


@plants("wrong_targets")
def wrong_targets(world: World, seed: int) -> Case:
    """A pattern that hits one layer only."""
    adapted = world.fresh({**LORA, "targets": ["model.layers.0.*_proj"]}, seed)
    events = train(adapted, healthy.material(world), lr=3e-3, steps=40, seed=seed)
    return Case(adapted, world.rows(48, "validation"), {"events": events, "card": adapted.card()})


@plants("exploding")
def exploding(world: World, seed: int) -> Case:
    """A learning rate a hundred times too high."""
    adapted = world.fresh(LORA, seed)
    events = train(adapted, world.rows(128, "train"), lr=0.3, steps=40, seed=seed)
    return Case(adapted, world.rows(48, "validation"), {"events": events, "card": adapted.card()})


@plants("rank_collapse")
def rank_collapse(world: World, seed: int) -> Case:
    """All rows of A start equal, so they stay equal."""
    adapted = world.fresh(LORA, seed)
    with torch.no_grad():
        for layer in _factors(adapted):
            weight = layer.lora_A["default"].weight
            weight.copy_(weight[:1].expand_as(weight))
    events = train(adapted, healthy.material(world), lr=3e-3, steps=60, seed=seed)
    return Case(adapted, world.rows(48, "validation"), {"events": events, "card": adapted.card()})


@plants("labels_masked")
def labels_masked(world: World, seed: int) -> Case:
    """Every label is masked, as when pad is the stop token and the template finds no answers."""
    case = healthy.run(world, "lora", seed, steps=20)
    case.rows = [Row(row.id, row.input_ids, np.full_like(row.labels, IGNORE)) for row in case.rows]
    return case


@plants("never_stops")
def never_stops(world: World, seed: int) -> Case:
    """Answers run on and no stop token is ever trained."""

    def endless(row: Row) -> Row:
        answer = row.input_ids[row.labels != IGNORE][:-1]
        prompt = row.input_ids[row.labels == IGNORE]
        more = np.array([(int(answer[-1]) - FIRST + i) % WORDS + FIRST for i in range(1, 12)], np.int32)
        ids = np.concatenate([prompt, answer, more]).astype(np.int32)
        return Row(row.id, ids, np.where(np.arange(len(ids)) < len(prompt), IGNORE, ids).astype(np.int32))

    adapted = world.fresh(LORA, seed)
    events = train(adapted, [endless(row) for row in world.rows(256, "train")], lr=3e-3, steps=60, seed=seed)
    held_out = [endless(row) for row in world.rows(48, "validation")]
    return Case(adapted, held_out, {"events": events, "card": adapted.card()})


@plants("collapsed_output")
def collapsed_output(world: World, seed: int) -> Case:
    """Every training answer is the same."""

    def constant(row: Row) -> Row:
        ids = row.input_ids.copy()
        ids[row.labels != IGNORE] = [*range(FIRST, FIRST + int((row.labels != IGNORE).sum()) - 1), STOP]
        return Row(row.id, ids, np.where(row.labels == IGNORE, IGNORE, ids).astype(np.int32))

    adapted = world.fresh(LORA, seed)
    events = train(adapted, [constant(row) for row in world.rows(256, "train")], lr=3e-3, steps=60, seed=seed)
    return Case(adapted, world.rows(48, "validation"), {"events": events, "card": adapted.card()})


@plants("overfit")
def overfit(world: World, seed: int) -> Case:
    """Many epochs on few rows whose answers are chance: there is nothing to learn but the rows themselves."""

    def random_answer(row: Row) -> Row:
        ids = row.input_ids.copy()
        places = np.flatnonzero(row.labels != IGNORE)[:-1]
        ids[places] = generator(seed, "chance", row.id).integers(0, WORDS, len(places)) + FIRST
        return Row(row.id, ids, np.where(row.labels == IGNORE, IGNORE, ids).astype(np.int32))

    few = [random_answer(Row(f"few{row.id}", row.input_ids, row.labels)) for row in world.rows(24, "few")]
    held_out = [random_answer(row) for row in world.rows(48, "validation")]
    adapted = world.fresh({**LORA, "r": 16}, seed)
    events = train(adapted, few, lr=3e-3, steps=150, seed=seed, batch=12, every=10, held_out=held_out)
    return Case(adapted, held_out, {"events": events, "card": adapted.card()})


@plants("forgetting")
def forgetting(world: World, seed: int) -> Case:
    """Full tuning at a high rate on the task alone."""
    adapted = world.fresh({"name": "full"}, seed)
    events = train(adapted, world.rows(256, "train"), lr=3e-3, steps=60, seed=seed)
    general = world.general(48)
    return Case(adapted, world.rows(48, "validation"), {"events": events, "card": adapted.card(), "general": general})


@plants("wrong_base")
def wrong_base(world: World, seed: int) -> Case:
    """The adapter on a base of the same shape with other weights, which PEFT accepts without a word."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    case = healthy.run(world, "lora", seed, steps=20)
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(seed + 7)
        LlamaForCausalLM(AutoConfig.from_pretrained(world.folder)).save_pretrained(scratch)
        AutoTokenizer.from_pretrained(world.folder).save_pretrained(scratch)
        other = World(Path(scratch), world.seed).fresh(LORA, seed)
    other.load_state(case.adapted.state())
    return Case(other, case.rows, case.run)


@plants("merged_twice")
def merged_twice(world: World, seed: int) -> Case:
    """Saved, merged, and loaded again on the merged base."""
    case = healthy.run(world, "lora", seed)
    with tempfile.TemporaryDirectory() as scratch:
        case.adapted.merge(Path(scratch) / "merged")
        again = World(Path(scratch) / "merged", world.seed).fresh(LORA, seed)
    again.load_state(case.adapted.state())
    return Case(again, case.rows, {"events": case.run["events"]})


@plants("tokenizer_mismatch")
def tokenizer_mismatch(world: World, seed: int) -> Case:
    """Another template than in the training."""
    from luthier.data.templates import TEMPLATES

    case = healthy.run(world, "lora", seed, steps=20)
    case.adapted.template = TEMPLATES.parse("plain")
    return case


@plants("padding_variance")
def padding_variance(world: World, seed: int) -> Case:
    """Batches are padded on the left, without a mask and without position ids."""
    from luthier.engine.batch import Batch, padded

    case = healthy.run(world, "lora", seed, steps=20)
    adapted, base = case.adapted, case.adapted.base

    def careless(batch: Batch) -> Tensor:
        laid = padded(batch, base.pad_id, side="left")
        out = base.anatomy.backbone(input_ids=laid.input_ids, use_cache=False).last_hidden_state
        return out.reshape(-1, out.shape[-1])[laid.flat]

    adapted.hidden = careless  # type: ignore[method-assign]
    case.rows = [*case.rows[:16], *world.general(48)[:16]]
    return case


@plants("random_head")
def random_head(world: World, seed: int) -> Case:
    """The adapter was saved without its head."""
    adapted = world.fresh(LORA, seed, LABELS)
    start = {name: weight.detach().clone() for name, weight in adapted.parameters_by_name().items()}
    train(adapted, world.labelled(256, "train"), lr=3e-3, steps=40, seed=seed)
    head = tuple(name + "." for name in adapted.base.head)
    with torch.no_grad():
        for name, weight in adapted.parameters_by_name().items():
            if name.startswith(head):
                weight.copy_(start[name])
    return Case(adapted, world.labelled(48, "validation"), {"card": adapted.card()})


@plants("context_mismatch")
def context_mismatch(world: World, seed: int) -> Case:
    """Trained with a window extension, loaded without it."""
    case = healthy.run(world, "lora", seed, steps=20)
    card = copy.deepcopy(case.run["card"])
    card["context"] = {"method": "linear", "length": 256}
    case.run["card"] = card
    return case


@plants("window_unused")
def window_unused(world: World, seed: int) -> Case:
    """A window made longer on a base whose layers slide: nothing beyond their 16 tokens is ever seen."""
    from luthier.models import attention

    folder = Path(tempfile.mkdtemp(dir=world.folder.parent))
    shutil.copytree(world.folder, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    config["max_position_embeddings"] = 4 * WINDOW
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    case = healthy.run(World(folder, world.seed), "lora", seed)
    long = [np.arange(start, start + 3 * WINDOW) % WORDS + FIRST for start in range(2)]
    case.run["window"] = {"attention": {"tuned": attention.inspect(case.adapted, long, WINDOW)}}
    return case


@plants("unhelpful_layers")
def unhelpful_layers(world: World, seed: int) -> Case:
    """The branch of the most useful layer points the wrong way."""
    from luthier.health.probes import ablation

    case = healthy.run(world, "lora", seed)
    places: dict[int, list[Any]] = {}
    for name, layer in case.adapted.attached.branches():
        places.setdefault(int(name.split(".")[2]), []).append(layer)
    costs = ablation.measure(case.adapted, case.rows, places, seed)
    best = max(costs, key=lambda item: item[1])[0]
    with torch.no_grad():
        for layer in places[best]:
            layer.lora_B["default"].weight.neg_()
    return case
