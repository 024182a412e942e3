"""The self-test's world: a little language, a base that learnt it, and the new word that adapters learn.

A row is `<s> op a b c : answer </s>`. The base learns `copy` (the same words), `next` (each word's successor) and
to count through the words (general text). Tuning teaches the new word `task`, which means `next`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.adapted import AdaptedModel, attach
from luthier.core.seeding import generator, seed_everything
from luthier.core.types import IGNORE, Row
from luthier.data.batching import BatchPlan
from luthier.data.templates import choose
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS

WORDS = 16
CONTENT = 3
SPECIAL = ("<pad>", "<s>", "</s>", "copy", "next", "task", ":")
PAD, START, STOP, COPY, NEXT, TASK, COLON = range(len(SPECIAL))
FIRST = len(SPECIAL)
SIZE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
WINDOW = 64
PRETRAINING = 350
LABELS = ("even", "odd")


@dataclass(frozen=True)
class World:
    """The folder of the base, and rows: of the new word, of labels, of general text."""

    folder: Path
    seed: int

    def rows(self, count: int, *names: object) -> list[Row]:
        """Rows of the new word."""
        return [lesson(TASK, source, f"r{i}") for i, source in _sources(self.seed, count, "task", *names)]

    def general(self, count: int) -> list[Row]:
        """Counting, which the base knows."""
        return [counting(source, f"g{i}") for i, source in _sources(self.seed, count, "general")]

    def labelled(self, count: int, *names: object) -> list[Row]:
        """Three words; the class is whether the first one has an odd number."""
        made = []
        for i, source in _sources(self.seed, count, "labels", *names):
            words = source.integers(0, WORDS, CONTENT)
            ids = np.array([START, COPY, *(words + FIRST), COLON], np.int32)
            made.append(Row(f"c{i}", ids, np.full(len(ids), IGNORE, np.int32), int(words[0] % 2)))
        return made

    def fresh(
        self, method: Mapping[str, Any], seed: int, labels: Sequence[str] = (), context: Mapping[str, Any] | None = None
    ) -> AdaptedModel:
        """The method on a fresh copy of the base."""
        task = TASKS.parse("classify" if labels else "instruct")
        settings = ModelSettings(path=str(self.folder), device="cpu")
        base = load_base(settings, task=task.name, labels=tuple(labels) or None, context=context, seed=seed)
        template = choose("plain" if labels else "alpaca", base.tokenizer, task.name)
        return attach(base, method, task, template, seed=seed, labels=tuple(labels), max_length=WINDOW)


def _sources(seed: int, count: int, *names: object) -> list[tuple[int, np.random.Generator]]:
    return [(index, generator(seed, *names, index)) for index in range(count)]


def lesson(op: int, source: np.random.Generator, name: str) -> Row:
    """A prompt and its trained answer."""
    words = source.integers(0, WORDS, CONTENT)
    answer = words if op == COPY else (words + 1) % WORDS
    prompt = [START, op, *(words + FIRST).tolist(), COLON]
    ids = np.array([*prompt, *(answer + FIRST).tolist(), STOP], np.int32)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORE
    return Row(name, ids, labels)


def counting(source: np.random.Generator, name: str) -> Row:
    """A document that counts from a random word."""
    first, length = int(source.integers(0, WORDS)), int(source.integers(5, 10))
    ids = np.array([START, *((first + np.arange(length)) % WORDS + FIRST).tolist(), STOP], np.int32)
    return Row(name, ids, ids.copy())


def blank(folder: Path, seed: int = 0) -> World:
    """The base before it learnt anything: random weights, tokenizer, config."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    seed_everything(seed)
    names = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "w0"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    ids: dict[str, Any] = {"bos_token_id": START, "eos_token_id": STOP, "pad_token_id": PAD}
    config = LlamaConfig(vocab_size=len(names), max_position_embeddings=WINDOW, **ids, **SIZE)
    LlamaForCausalLM(config).save_pretrained(folder)
    return World(folder, seed)


def build(folder: Path, seed: int = 0) -> World:
    """Train the base (some seconds) and save it."""
    world = blank(folder, seed)
    adapted = world.fresh({"name": "full"}, seed)
    source = generator(seed, "pretraining")
    corpus = [_any(source, f"p{i}") for i in range(4096)]
    train(adapted, corpus, lr=4e-3, steps=PRETRAINING, seed=seed, batch=48)
    adapted.base.model.save_pretrained(folder)
    return world


def _any(source: np.random.Generator, name: str) -> Row:
    kind = int(source.integers(0, 3))
    return counting(source, name) if kind == 0 else lesson(COPY if kind == 1 else NEXT, source, name)


def train(
    adapted: AdaptedModel, rows: Sequence[Row], *, lr: float, steps: int, seed: int, batch: int = 16, every: int = 0,
    held_out: Sequence[Row] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """A plain AdamW loop with linear decay; returns events as a run would log them."""
    from luthier.health.probes.ablation import losses

    weights = [weight for weight in adapted.parameters_by_name().values() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    plan = BatchPlan(rows, batch_tokens=None, batch_size=batch, seed=seed)
    events: list[dict[str, Any]] = []
    step, epoch = 0, 0
    while step < steps:
        for group in plan.groups(epoch):
            adapted.train()
            made = adapted.loss(group[0])
            optimizer.zero_grad()
            (made.total / max(1, made.count)).backward()
            norm = float(torch.nn.utils.clip_grad_norm_(weights, 1.0)) if weights else 0.0
            for setting in optimizer.param_groups:
                setting["lr"] = lr * min(1.0, (step + 1) / 5) * (1 - step / steps)
            optimizer.step()
            step += 1
            loss = float(made.total.detach()) / max(1, made.count)
            events.append({"kind": "train", "step": step, "epoch": epoch, "loss": loss, "grad_norm": norm})
            if every and step % every == 0:
                found = losses(adapted, held_out)
                events.append({"kind": "validate", "step": step, "loss": float(found[:, 0].sum() / found[:, 1].sum())})
                events[-1] |= {"row_losses": found[:, 0].tolist(), "row_units": found[:, 1].tolist()}
            if step >= steps:
                break
        epoch += 1
    adapted.eval()
    return events
