"""The work that every arm does: a base made from a config, rows, and a LoRA to start from. Nothing is downloaded.

folder/model/    config.json, model.safetensors, a small tokenizer (TRL asks for one)
folder/rows.json [{"input_ids": […], "labels": […]}, …]
folder/start/    the adapter before training, PEFT's format
folder/work.json everything else that an arm must know
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama25m": (
        "llama",
        {
            "vocab_size": 16384,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
    "opt125m": (
        "opt",
        {
            "vocab_size": 50272,
            "hidden_size": 768,
            "ffn_dim": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "word_embed_proj_dim": 768,
            "max_position_embeddings": 2048,
            "dropout": 0.0,
        },
    ),
    "tiny": (
        "llama",
        {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
}
"""Model shapes by name; `tiny` is for tests."""

LORA = {"name": "lora", "r": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
TRAIN = {"lr": 1e-3, "rows_per_step": 16, "clip_norm": 1.0}
LONGEST, MEDIAN, SIGMA, UNTRAINED = 512, 81, 1.08, 0.22
"""Lengths of instruction data: log-normal, p90 about 320 tokens; the share that is prompt."""
PREDICTABLE = 0.7
"""Share of tokens that the one before them determines: something to learn."""


def make_rows(count: int, vocabulary: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows with the lengths of instruction data over a learnable chain of tokens."""
    import numpy as np

    source = np.random.default_rng(seed)
    after = source.permutation(np.arange(3, vocabulary))
    lengths = np.clip(np.exp(source.normal(np.log(MEDIAN), SIGMA, count)), 8, LONGEST).astype(int)
    rows = []
    for length in lengths:
        ids = source.integers(3, vocabulary, length)
        keep = source.random(length) < PREDICTABLE
        for place in range(1, length):
            if keep[place]:
                ids[place] = after[ids[place - 1] - 3]
        prompt = int(length * UNTRAINED)
        rows.append({"input_ids": ids.tolist(), "labels": [-100] * prompt + ids[prompt:].tolist()})
    return rows


def prepare(folder: Path, shape: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Write the work; returns work.json."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from luthier.core.seeding import seed_everything
    from luthier.methods import METHODS

    kind, options = SHAPES[shape]
    seed_everything(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(
        tokenizer_object=_words(), pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    rows = make_rows(count, options["vocab_size"], seed)
    (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
    base = base_of(folder / "model")
    METHODS.parse(LORA).attach(base, seed).save(folder / "start")
    tokens = sum(len(row["input_ids"]) for row in rows)
    supervised = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
    work = {
        **TRAIN,
        "model": str(folder / "model"),
        "rows": str(folder / "rows.json"),
        "start": str(folder / "start"),
        "shape": shape,
        "count": count,
        "tokens": tokens,
        "supervised": supervised,
        "flops": flops(base, rows),
        "longest": LONGEST,
    }
    (folder / "work.json").write_text(json.dumps(work), "utf-8")
    return work


def _words() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<end>": 2}, unk_token="<unk>"))


def base_of(folder: Path) -> Any:
    """The base as luthier holds it, without a tokenizer that could read text."""
    from transformers import AutoModelForCausalLM

    from luthier.models import anatomy
    from luthier.models.base import Base

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    model.requires_grad_(False)
    found = anatomy.of(model)
    nothing: Any = None
    return Base(model, nothing, found, "decoder", folder, {"name": folder.name}, (2,), 1)


def flops(base: Any, rows: list[dict[str, list[int]]]) -> float:
    """Of one epoch with a frozen base: forward and input gradients of every product, no weight gradients.

    4 · (weights of the layers and the head) a token + 6 · 2 · hidden · n / 2 a layer for causal attention over n
    tokens + 6 · r · (in + out) a LoRA target.
    """
    facts = base.anatomy
    model = base.model
    names = [name for name, _ in model.named_modules()]
    linear = sum(
        module.base_layer.weight.numel() if hasattr(module, "base_layer") else module.weight.numel()
        for name, module in model.named_modules()
        if "lora_" not in name
        and not name.endswith("base_layer")
        and (hasattr(module, "base_layer") or type(module).__name__ == "Linear")
    )
    assert names, "a model without modules"
    adapters = sum(w.numel() for name, w in model.named_parameters() if "lora_" in name)
    tokens = sum(len(row["input_ids"]) for row in rows)
    squares = sum(len(row["input_ids"]) ** 2 for row in rows)
    layers = len(facts.layers)
    return float((4 * linear + 6 * adapters) * tokens + 6 * 2 * facts.hidden_size * layers * squares / 2)
